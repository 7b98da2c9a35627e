"""Settings of the C library's allocator that suit large, short-lived activations."""

from __future__ import annotations


def tune_allocator() -> str:
    return "default"
