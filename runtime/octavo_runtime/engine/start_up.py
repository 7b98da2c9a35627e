"""How long the stages of a start took, and the line that tells it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from octavo_runtime.engine.messages import EngineInfo

_NAMES = {"kv_cache": "KV cache", "warm_up": "warm-up"}


@contextmanager
def timed(stages: dict[str, float], name: str) -> Iterator[None]:
    """Writes the seconds that the block takes to `stages`."""
    started = time.perf_counter()
    yield
    stages[name] = time.perf_counter() - started


def start_up_line(info: EngineInfo, total_s: float) -> str:
    """`ready in 9.1 s: start 3.2 s, weights 2.9 s, …, 35 CUDA graphs; …` for people.

    total_s: from the start until the engine was ready. What no stage accounts for is "start": the
    interpreter, imports, the tokenizer.
    """
    stages = {"start": max(0.0, total_s - sum(info.stages.values())), **info.stages}
    parts = [f"{_NAMES.get(name, name)} {seconds:.2f} s" for name, seconds in stages.items()]
    if info.num_graphs:
        parts[-1] += f" ({info.num_graphs} CUDA graphs)"
    cache = f"{info.num_blocks * info.block_size} tokens of KV cache"
    line = f"ready in {total_s:.2f} s: {', '.join(parts)}; {info.dtype}"
    return f"{line}, {cache}" if info.num_blocks else line
