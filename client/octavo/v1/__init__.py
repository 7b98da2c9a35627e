"""Paths that users of vLLM import from."""
