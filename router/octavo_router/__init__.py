"""The prefix-aware router."""
