"""Engines and their arguments, under the paths that vLLM's users import them from."""
