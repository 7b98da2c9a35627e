"""Bodies of `octavo bench`: offline throughput and latency, and load on a running server."""
