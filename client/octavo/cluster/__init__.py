"""`LLM(cluster=…)`: the calls of an offline `LLM` as durable batches of a running platform."""
