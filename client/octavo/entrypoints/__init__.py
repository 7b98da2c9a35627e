"""Ways to start Octavo, under the paths of vLLM."""
