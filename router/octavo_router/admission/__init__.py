"""When a request is sent on: at once, after a wait in a fair queue, or not at all."""
