"""Fast paths for CPU: numba kernels on torch's own threads, prepacked oneDNN products, and torch where numba is missing."""
