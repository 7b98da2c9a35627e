"""How long the router takes to pick a replica: `python -m benchmarks.router_decisions`.

One deployment of 100 replicas whose caches have 10 million index entries together; prompts of
1,000, 10,000 and 100,000 tokens in blocks of 16. A decision is what happens between a request's
block hashes and its replica: index lookup, views of all replicas, policy; as the router measures
itself (`octavo_router_decision_seconds`). Stated apart: the same with the bookkeeping that follows
(the explanation kept for /debug/route, speculative entries), hashing, and tokenization where a
model's folder is given, with what the next turn of a conversation costs (`growing_prompts`).

The caches: chains of blocks of all three lengths under one common system prompt, each on one to
three replicas, a third of them only to a part. A prompt is one of the chains with a new end.
"""

import argparse
import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import growing_prompts
from benchmarks.record import append, conditions
from octavo_protocol.hashing import HASH_BYTES, HashIdentity, block_hashes
from octavo_protocol.keys import Keys
from octavo_protocol.records import ReplicaRecord, encode
from octavo_protocol.tokenizer import Tokenizer
from octavo_router.decisions import Decider, PromptKey
from octavo_router.deployment import Deployment
from octavo_router.metrics import RouterMetrics
from octavo_router.prefix_index import IndexBudget

RESULTS = "router_decisions.jsonl"
BLOCK = 16
SIZES = {"1k": 1_000, "10k": 10_000, "100k": 100_000}
_SYSTEM_BLOCKS = 32
_NEW_SHARE = 0.05  # of a prompt: its new end
_OPEN_REQUESTS = 16  # of each replica
_NUM_WARM_UP = 20


@dataclass(frozen=True)
class Chain:
    """A cached prompt: the hashes of its blocks, end to end."""

    raw: bytes

    def hashes(self, num_blocks: int | None = None) -> list[bytes]:
        """Fresh objects, as from an event or a request."""
        end = len(self.raw) if num_blocks is None else num_blocks * HASH_BYTES
        return [self.raw[at : at + HASH_BYTES] for at in range(0, end, HASH_BYTES)]

    @property
    def num_blocks(self) -> int:
        return len(self.raw) // HASH_BYTES


def run(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints and records; returns the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=100)
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--decisions", type=int, default=300, help="of each size and run")
    parser.add_argument("--runs", type=int, default=12, help="the best counts")
    parser.add_argument("--tokenizer", type=Path, help="a model's folder: times tokenization too")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results")
    given = parser.parse_args(arguments)
    rng = random.Random(0)
    before = _resident_bytes()
    deployment, chains = _fleet(rng, given.replicas, given.entries)
    num_entries = deployment.index.num_entries
    row: dict[str, Any] = {
        "num_replicas": given.replicas,
        "num_entries": num_entries,
        "bytes_per_entry": (_resident_bytes() - before) / num_entries,
        "gc_s": _seconds(gc.collect),
        "sizes": {
            size: _measure(deployment, chains[size], tokens, given.decisions, given.runs, rng)
            for size, tokens in SIZES.items()
        },
        "hashing_ms": {size: _hashing_ms(tokens) for size, tokens in SIZES.items()},
    }
    if given.tokenizer is not None:
        row["tokenization_ms"] = _tokenization_ms(given.tokenizer)
        row["next_turn"] = growing_prompts.next_turn_ms(given.tokenizer, SIZES)
    _print(row)
    if given.record:
        append(RESULTS, {**conditions(), **row})
    return row


def _fleet(
    rng: random.Random, num_replicas: int, num_entries: int
) -> tuple[Deployment, dict[str, list[Chain]]]:
    """Replicas with open requests, and what their caches hold, by length."""
    deployment = Deployment(Keys("bench", "fleet"), budget=IndexBudget(2**40))
    names = [f"replica-{number:03}" for number in range(num_replicas)]
    deployment.take({name: _record(name) for name in names})
    for name in names:
        for _ in range(_OPEN_REQUESTS):
            deployment.loads.sent(name, rng.randrange(2000))
    system = rng.randbytes(_SYSTEM_BLOCKS * HASH_BYTES)
    chains: dict[str, list[Chain]] = {size: [] for size in SIZES}
    for size, chain in _chains(rng, system):
        chains[size].append(chain)
        for name in rng.sample(names, min(num_replicas, rng.randint(1, 3))):
            is_part = rng.random() < 1 / 3
            num_held = rng.randint(1, chain.num_blocks) if is_part else chain.num_blocks
            deployment.index.add(name, chain.hashes(num_held))
        if deployment.index.num_entries >= num_entries:
            return deployment, chains
    raise AssertionError


def _chains(rng: random.Random, system: bytes) -> Iterator[tuple[str, Chain]]:
    """Without end: most chains short, most blocks in long ones."""
    while True:
        (size,) = rng.choices(list(SIZES), weights=[100, 30, 10])
        num_new = SIZES[size] // BLOCK - _SYSTEM_BLOCKS
        yield size, Chain(system + rng.randbytes(num_new * HASH_BYTES))


def _record(name: str) -> bytes:
    return encode(
        ReplicaRecord(
            replica_id=name,
            incarnation=name,
            url="",
            model="bench",
            served_names=["bench"],
            cache_model="bench",
            block_size=BLOCK,
            num_blocks=2**17,
            max_model_len=2**17,
            running=4,
            waiting_tokens=5000,
            prefill_tokens_per_s=16_000.0,
            decode_tokens_per_s=1000.0,
        )
    )


def _measure(
    deployment: Deployment,
    chains: list[Chain],
    num_tokens: int,
    num_decisions: int,
    num_runs: int,
    rng: random.Random,
) -> dict[str, float]:
    """Milliseconds of a decision, of the run with the best 99th percentile: others use the machine
    too. whole: with the bookkeeping.
    """
    runs = [
        _decide(deployment, chains, num_tokens, num_decisions, rng) for _ in range(num_runs + 1)
    ]
    return min(runs[1:], key=lambda run: run["p99_ms"])


def _decide(
    deployment: Deployment, chains: list[Chain], num_tokens: int, num: int, rng: random.Random
) -> dict[str, float]:
    decider = Decider(None, RouterMetrics())  # type: ignore[arg-type]  # it tokenizes nothing here
    alone, whole, depths = [], [], []
    for number in range(_NUM_WARM_UP + num):
        key = _prompt(rng.choice(chains), num_tokens, rng)
        started = time.perf_counter()
        decision = decider.choose(deployment, f"request-{number}", "bench", key)
        whole.append((time.perf_counter() - started) * 1000)
        alone.append(decision.seconds * 1000)
        depths.append(decision.num_cached_tokens / num_tokens)
    return {
        "p50_ms": _percentile(alone, 0.5),
        "p99_ms": _percentile(alone, 0.99),
        "whole_p50_ms": _percentile(whole, 0.5),
        "whole_p99_ms": _percentile(whole, 0.99),
        "cached_share": sum(depths) / len(depths),
    }


def _percentile(values: list[float], share: float) -> float:
    ordered = sorted(values[_NUM_WARM_UP:])
    return ordered[int(len(ordered) * share)]


def _prompt(chain: Chain, num_tokens: int, rng: random.Random) -> PromptKey:
    num_new = int(chain.num_blocks * _NEW_SHARE) + 1
    known = chain.hashes(chain.num_blocks - num_new)
    new = Chain(rng.randbytes(num_new * HASH_BYTES)).hashes()
    return PromptKey(hashes=(*known, *new), num_tokens=num_tokens, block_size=BLOCK)


def _hashing_ms(num_tokens: int) -> float:
    tokens = [number % 50_000 for number in range(num_tokens)]
    extra = HashIdentity("bench").extra()
    return min(_seconds(lambda: block_hashes(tokens, BLOCK, extra)) for _ in range(9)) * 1000


def _tokenization_ms(folder: Path) -> dict[str, float]:
    """Of English text, about as many tokens as each size says."""
    tokenizer = Tokenizer.from_folder(folder)
    text = (__doc__ or "") * (8 * SIZES["100k"] // len(__doc__ or ""))
    num_chars = len(text) / len(tokenizer.encode(text))
    pieces = {size: text[: int(num_tokens * num_chars)] for size, num_tokens in SIZES.items()}
    return {
        size: min(_seconds(lambda: tokenizer.encode(piece)) for _ in range(5)) * 1000  # noqa: B023
        for size, piece in pieces.items()
    }


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def _print(row: dict[str, Any]) -> None:
    print(
        f"{row['num_entries']:,} entries of {row['num_replicas']} replicas, "
        f"{row['bytes_per_entry']:.0f} bytes each; a full garbage collection {row['gc_s']:.2f} s"
    )
    for size, measured in row["sizes"].items():
        apart = f"hashing {row['hashing_ms'][size]:.2f} ms"
        if "tokenization_ms" in row:
            apart += f", tokenization {row['tokenization_ms'][size]:.1f} ms"
        print(
            f"{size:>5} tokens: decision p50 {measured['p50_ms']:.2f} ms, p99 "
            f"{measured['p99_ms']:.2f} ms, {measured['cached_share']:.0%} cached; with bookkeeping "
            f"{measured['whole_p50_ms']:.2f} and {measured['whole_p99_ms']:.2f}; apart: {apart}"
        )
    for size, turn in row.get("next_turn", {}).items():
        print(growing_prompts.line(size, turn))


if __name__ == "__main__":
    run()
