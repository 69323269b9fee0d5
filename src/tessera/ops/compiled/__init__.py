"""What of the operations runs as machine code. Imported only where it is used, as it brings numba."""
