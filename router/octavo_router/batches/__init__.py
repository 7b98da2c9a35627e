"""Durable batches: each line of an uploaded file gets one result, whatever dies meanwhile.

`store` holds the truth in Redis, `planning` cuts a file into chunks of lines, `worker` leases
chunks and has their lines answered, `results` writes the output. `routes` is the HTTP face.
"""
