"""Octavo: serve large language models on Kubernetes, on a laptop, or in process."""
