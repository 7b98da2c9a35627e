"""Waiting for Redis, where going on without its answer would cost more."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import redis.exceptions

REDIS_ERRORS = (redis.exceptions.RedisError, OSError)
_PAUSE_S = 0.2
_T = TypeVar("_T")


async def patiently(ask: Callable[[], Awaitable[_T]]) -> _T:
    """What Redis answers, when it does."""
    while True:
        try:
            return await ask()
        except REDIS_ERRORS:
            await asyncio.sleep(_PAUSE_S)
