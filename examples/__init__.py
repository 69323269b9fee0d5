"""Whole programs to read and run, each as `python examples/NAME.py`."""
