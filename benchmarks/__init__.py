"""Measurements, each run as `python -m benchmarks.NAME [--quick] [--json]`; the figures are in docs/benchmarks.md."""
