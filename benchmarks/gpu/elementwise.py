"""The small operations of a step on a GPU, beside the floor of the memory; sampling beside torch.

    PYTHONPATH=kernels:. python -m benchmarks.gpu.elementwise

Replays of CUDA graphs over several sets of inputs, medians. The floor is the bytes that have to be
moved at the measured rates; small inputs lie in the L2 cache, as they do in a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.linear import graph_us
from octavo_kernels import (
    add_rms_norm,
    apply_token_bitmask,
    gelu_and_mul,
    new_kv_cache,
    rms_norm,
    rotary_and_cache,
    silu_and_mul,
    write_kv_cache,
)
from octavo_kernels.reference import sampling as reference
from octavo_kernels.sampling import gather_logprobs, sample_tokens

COPY_RATE, READ_RATE = 4.25e12, 4.55e12  # bytes/s
ROTATION = 200_000_000  # bytes of inputs in turn
TOKENS = (1, 64, 256, 8192)
VOCAB = 151_936
ROWS = (1, 8, 64, 256)
Call = Callable[[], object]


class Model(NamedTuple):
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    has_head_norm: bool


MODELS = {
    "0.6B": Model(1024, 3072, 16, 8, 128, True),
    "8B": Model(4096, 14336, 32, 8, 128, False),
}


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device="cuda")


def timed(make: Callable[[], Call], num_bytes: float) -> float:
    """Median of one call; `make` makes the inputs of one anew."""
    count = min(32, max(2, math.ceil(ROTATION / num_bytes)))
    calls = [make() for _ in range(count)]
    return graph_us(calls * math.ceil(16 / count))


def operations(model: Model, num_tokens: int) -> Iterator[tuple[str, Callable[[], Call], int]]:
    """Name, maker of a call, bytes that it has to move."""
    hidden, size = model.hidden, model.intermediate
    weight = random(hidden)
    rows = 2 * num_tokens * hidden
    yield "rms_norm", lambda: partial(rms_norm, random(num_tokens, hidden), weight, 1e-6), 2 * rows

    def add() -> Call:
        x, residual = random(num_tokens, hidden), random(num_tokens, hidden)
        return partial(add_rms_norm, x, residual, weight, 1e-6)

    yield "add_rms_norm", add, 4 * rows
    moved = 6 * num_tokens * size
    yield "silu_and_mul", lambda: partial(silu_and_mul, random(num_tokens, 2 * size)), moved
    yield "gelu_and_mul", lambda: partial(gelu_and_mul, random(num_tokens, 2 * size)), moved
    heads, kv_heads, head_dim = model.num_heads, model.num_kv_heads, model.head_dim
    positions = torch.arange(num_tokens, device="cuda")
    cos_sin = torch.randn(num_tokens, head_dim, device="cuda")
    norms = (random(head_dim), random(head_dim)) if model.has_head_norm else (None, None)

    def inputs() -> list[Tensor]:
        qkv = random(num_tokens, heads + 2 * kv_heads, head_dim)
        caches = new_kv_cache(
            2 * num_tokens // 16 + 1, 16, kv_heads, head_dim, dtype=torch.bfloat16, device="cuda"
        )
        slots = 2 * positions  # half of every block
        parts = torch.split(qkv, [heads, kv_heads, kv_heads], dim=1)
        return [*parts, cos_sin, positions, *caches, slots]

    def rotary() -> Call:
        query_norm, key_norm = norms
        return partial(
            rotary_and_cache, *inputs(), query_norm=query_norm, key_norm=key_norm, eps=1e-6
        )

    def write() -> Call:
        _, key, value, _, _, *rest = inputs()
        return partial(write_kv_cache, key, value, *rest)

    yield "rotary_and_cache", rotary, 4 * num_tokens * (heads + 2 * kv_heads) * head_dim
    yield "write_kv_cache", write, 8 * num_tokens * kv_heads * head_dim


class Sampling(NamedTuple):
    """peak: what the logits of 10 tokens of each row are raised by."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    peak: float = 0.0

    @property
    def has_filters(self) -> bool:
        return self.top_k > 0 or self.top_p < 1

    def logits(self, num_rows: int) -> Tensor:
        logits = random(num_rows, VOCAB) * 3
        logits[:, :10] += self.peak
        return logits

    def columns(self, num_rows: int) -> list[Tensor]:
        full = partial(torch.full, (num_rows,), device="cuda")
        kept = [full(self.temperature), full(self.top_k, dtype=torch.int32)]
        kept += [full(self.top_p), full(0.0), full(7, dtype=torch.int64)]
        return [*kept, torch.arange(num_rows, device="cuda")]


SAMPLING = {
    "greedy": Sampling(temperature=0.0),
    "all tokens": Sampling(),
    "top-k 20, top-p 0.95": Sampling(0.6, 20, 0.95, 12.0),
    "top-k 50, flat": Sampling(top_k=50),
    "top-p 0.9, peaked": Sampling(0.6, 0, 0.9, 12.0),
    "top-p 0.9, flat": Sampling(top_p=0.9),
}


def by_sort(logits: Tensor, sampling: Sampling) -> Tensor:
    """A sampler of torch operations, with a sort where there is a filter."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    scaled = logits.float() / sampling.temperature
    if not sampling.has_filters:
        return (scaled.softmax(-1) / torch.empty_like(scaled).exponential_()).argmax(-1)
    ranked, token_ids = scaled.sort(dim=-1, descending=True)
    if sampling.top_k:
        ranked[:, sampling.top_k :] = -torch.inf
    weights = ranked.softmax(dim=-1)
    ahead = weights.cumsum(dim=-1) - weights
    weights.masked_fill_(ahead >= sampling.top_p, 0.0)
    place = (weights / torch.empty_like(weights).exponential_()).argmax(-1, keepdim=True)
    return token_ids.gather(1, place)


def our_call(sampling: Sampling, num_rows: int) -> Call:
    inputs = [sampling.logits(num_rows), *sampling.columns(num_rows)]
    return partial(sample_tokens, *inputs, has_filters=sampling.has_filters)


def torch_call(sampling: Sampling, num_rows: int) -> Call:
    return partial(by_sort, sampling.logits(num_rows), sampling)


def sampling_calls(num_rows: int) -> Iterator[tuple[str, Callable[[], Call], Callable[[], Call]]]:
    """Name, maker of a call of ours, and of torch's."""
    for name, sampling in SAMPLING.items():
        yield name, partial(our_call, sampling, num_rows), partial(torch_call, sampling, num_rows)
    token_ids = torch.arange(num_rows, device="cuda")
    yield (
        "log-probabilities, 20",
        lambda: partial(gather_logprobs, random(num_rows, VOCAB) * 3, token_ids, 20),
        lambda: partial(reference.gather_logprobs, random(num_rows, VOCAB) * 3, token_ids, 20),
    )


def print_sampling() -> None:
    print(f"\n{'us':24}{'rows':>6}{'ours':>9}{'torch':>9}{'floor':>8}")
    for num_rows in ROWS:
        num_bytes = 2 * num_rows * VOCAB
        for name, ours, theirs in sampling_calls(num_rows):
            times = f"{timed(ours, num_bytes):9.1f}{timed(theirs, num_bytes):9.1f}"
            print(f"{name:24}{num_rows:6}{times}{num_bytes / READ_RATE * 1e6:8.1f}", flush=True)


def print_bitmask() -> None:
    """By events around the call: its rows come from the host."""
    for num_rows in ROWS:
        logits = random(num_rows, VOCAB)
        bitmask = torch.randint(-(2**31), 2**31, (num_rows, VOCAB // 32), device="cuda").int()
        call = partial(apply_token_bitmask, logits, bitmask, range(num_rows))
        times = []
        for _ in range(20):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            call()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3)
        floor = num_rows * VOCAB / READ_RATE * 1e6  # half of the logits are written
        print(f"{'token bit mask':24}{num_rows:6}{sorted(times)[10]:9.1f}{'':9}{floor:8.1f}")


def print_operations() -> None:
    print(f"{'us / floor':18}{'model':8}" + "".join(f"{tokens:>16,}" for tokens in TOKENS))
    for model_name, model in MODELS.items():
        lines: dict[str, list[str]] = {}
        for num_tokens in TOKENS:
            for name, make, num_bytes in operations(model, num_tokens):
                floor = num_bytes / COPY_RATE * 1e6
                lines.setdefault(name, []).append(f"{timed(make, num_bytes):8.1f} /{floor:6.1f}")
        for name, cells in lines.items():
            print(f"{name:18}{model_name:8}" + "".join(cells), flush=True)


def main() -> None:
    torch.manual_seed(0)
    print_operations()
    print_sampling()
    print_bitmask()


if __name__ == "__main__":
    main()
