"""Compiling, threads and the cache: the only place that knows Numba, and what is private to it."""
