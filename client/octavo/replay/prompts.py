"""Prompts for a trace that has none: random tokens that repeat exactly where block hashes do. Pure.

A block's tokens follow from its id alone. An id names its whole prefix, so prompts that begin with
the same ids begin with the same tokens, and no others do. What follows the last block is of the one
request alone.
"""

import array
import hashlib
from dataclasses import dataclass

from octavo.bench.workload import FIRST_TOKEN_ID
from octavo.sim.trace import TraceRequest


@dataclass(frozen=True, slots=True)
class PromptMaker:
    """block_size: tokens that a hash stands for. vocab_size: ids below it are used, but not the
    lowest thousand, among which are special tokens. seed: another one gives other prompts, so that
    nothing of an earlier run is cached.
    """

    block_size: int
    vocab_size: int
    seed: int = 0

    def prompt(self, request: TraceRequest, number: int) -> list[int]:
        """The tokens of the trace's request `number`."""
        tokens: list[int] = []
        for block in request.hashes:
            tokens += self._tokens(b"block", block, self.block_size)
        num_own = request.num_prompt_tokens - len(tokens)
        if num_own > 0:
            tokens += self._tokens(b"request", b"%d" % number, num_own)
        return tokens[: request.num_prompt_tokens]

    def _tokens(self, kind: bytes, name: bytes, count: int) -> list[int]:
        named = b"%d:%s:%s" % (self.seed, kind, name)
        drawn = array.array("I", hashlib.shake_128(named).digest(4 * count))
        first = min(FIRST_TOKEN_ID, self.vocab_size // 2)
        span = self.vocab_size - first
        return [first + value % span for value in drawn]
