"""What compiled Python shares: the compiler with its cache, and raw memory. numba is imported only with the modules."""
