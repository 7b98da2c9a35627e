"""Files that clients upload and batches write: bytes in a storage, what they are in Redis."""
