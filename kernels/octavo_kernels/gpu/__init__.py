"""Triton kernels for NVIDIA GPUs; the dispatchers beside this package choose them."""
