"""Each operation in plain torch, written to be obviously right; tests and fallbacks use it."""
