"""What runs as machine code: scanners, encoder and trainer. Imported only where it is used, as it brings numba."""
