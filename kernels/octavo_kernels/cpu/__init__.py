"""Fast paths for CPU: numba kernels on torch's own threads, prepacked oneDNN products.

Torch alone serves where numba is missing.
"""
