"""Names that stand for models, and the shares by which requests for one name are split.

A draw that is sticky hashes session or tenant by weighted rendezvous hashing, so that a changed
weight moves only as many as it must. Source: Schindelhauer and Schomaker, "Weighted Distributed
Hash Tables" (SPAA 2005), the logarithmic method.
"""

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    model: str
    weight: float


@dataclass(frozen=True, slots=True)
class Alias:
    """sticky: "session", "tenant" or None."""

    name: str
    targets: tuple[Target, ...]
    sticky: str | None = None

    def pick(
        self,
        key: str | None,
        *,
        is_ready: Callable[[str], bool],
        draw: Callable[[], float] = random.random,
    ) -> str:
        """The model for one request. key: what sticks, None: nothing does. is_ready: whether a
        model can answer now; those that cannot are passed over while another one can.
        """
        weighted = [each for each in self.targets if each.weight]
        ready = [each for each in weighted if is_ready(each.model)] or weighted
        if key is None:
            return _drawn(ready, draw()).model
        return max(ready, key=lambda each: _score(self.name, key, each)).model


def _drawn(targets: Sequence[Target], fraction: float) -> Target:
    left = fraction * sum(each.weight for each in targets)
    for each in targets[:-1]:
        left -= each.weight
        if left < 0:
            return each
    return targets[-1]


def _score(alias: str, key: str, target: Target) -> float:
    text = "\0".join((alias, key, target.model)).encode()
    number = int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
    return -target.weight / math.log((number + 0.5) / 2**64)
