"""What the next turn of a conversation costs: `python -m benchmarks.growing_prompts FOLDER`.

Milliseconds of processor time in the router and in a replica's API process, by length.

A conversation of English messages of some 300 tokens each; the turn that is measured adds an answer
and a question to what was tokenized before. Whole and incremental work alternate in one process and
give the same ids and hashes, which is checked. Rendering the chat template is part of all of them.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks.record import append, conditions
from octavo_protocol.bounded_memo import BoundedMemo
from octavo_protocol.hashing import BlockHasher, HashIdentity, block_hashes
from octavo_protocol.openai import ChatCompletionRequest
from octavo_protocol.packed_ids import pack, unpack
from octavo_protocol.tokenizer import Tokenizer

RESULTS = "growing_prompts.jsonl"
SIZES = {"1k": 1_000, "10k": 10_000, "100k": 100_000}
_BLOCK = 16
_MESSAGE_CHARS = 1200
_REPEATS = 5
_IDENTITY = HashIdentity("bench")
_T = TypeVar("_T")


def run(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a model's folder")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results")
    given = parser.parse_args(arguments)
    turns = next_turn_ms(given.folder, SIZES)
    for size, turn in turns.items():
        print(line(size, turn))
    if given.record:
        append(RESULTS, {**conditions(), "next_turn": turns})


def line(size: str, turn: dict[str, float]) -> str:
    return (
        f"{size:>5} tokens, next turn: router {turn['router_whole_ms']:.2f} ms from the whole, "
        f"{turn['router_ms']:.2f} with what it knows "
        f"({turn['router_whole_ms'] / turn['router_ms']:.0f}x); replica "
        f"{turn['replica_whole_ms']:.2f}, {turn['replica_known_ms']:.2f} with what it knows, "
        f"{turn['replica_given_ms']:.2f} with the router's tokens"
    )


def next_turn_ms(folder: Path, sizes: dict[str, int]) -> dict[str, dict[str, float]]:
    """By size in tokens. Of the router, tokens and hashes: from the whole prompt, and with what it
    knows; of a replica, tokens: from the whole prompt, with what it knows, and from the router's.
    The best of five turns each.
    """
    text = Path(__file__).with_name("router_decisions.py").read_text()
    plain = Tokenizer.from_folder(folder)
    num_chars = len(text) / len(plain.encode(text))
    return {size: _measure(plain, text, int(num * num_chars)) for size, num in sizes.items()}


def _measure(plain: Tokenizer, text: str, num_chars: int) -> dict[str, float]:
    tokenizer, replicas = Tokenizer(plain.bundle), Tokenizer(plain.bundle)
    hasher = BlockHasher(BoundedMemo(2**26))
    runs: dict[str, list[float]] = {}
    for turn in range(-1, _REPEATS):
        request = _conversation(text, num_chars, turn)

        def whole(request: ChatCompletionRequest = request) -> list[int]:
            rendered = plain.chat_prompt(request)
            [encoding] = plain.backend.encode_batch_fast([rendered], add_special_tokens=False)
            return encoding.ids

        def routed(request: ChatCompletionRequest = request) -> tuple[bytes, list[bytes]]:
            packed = tokenizer.begin_chat(request).packed()
            return packed, hasher.hashes(packed, _BLOCK, _IDENTITY)

        def routed_whole(request: ChatCompletionRequest = request) -> list[bytes]:
            return block_hashes(whole(request), _BLOCK, _IDENTITY.extra())

        took: dict[str, float] = {}
        expected, took["replica_whole"] = _timed(whole)
        hashes, took["router_whole"] = _timed(routed_whole)
        (packed, known_hashes), took["router"] = _timed(routed)
        ids, took["replica_given"] = _timed(lambda: (plain.chat_prompt(request), unpack(packed)))  # noqa: B023
        _, took["replica_known"] = _timed(lambda: replicas.begin_chat(request).token_ids())  # noqa: B023
        assert (packed, known_hashes, ids[1]) == (pack(expected), hashes, expected)
        for name, ms in took.items():
            runs.setdefault(name, []).append(ms)
    return {f"{name}_ms": min(ms[1:]) for name, ms in runs.items()}  # the first knows nothing


def _conversation(text: str, num_chars: int, turn: int) -> ChatCompletionRequest:
    """Alike up to the last answer and question, which are of this turn alone."""
    starts = range(0, num_chars, _MESSAGE_CHARS)
    pieces = [(text * 2)[start % len(text) :][:_MESSAGE_CHARS] for start in starts]
    pieces += [f"{turn} {text[:_MESSAGE_CHARS]}", f"{turn} {text[:400]}"]
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": each} for i, each in enumerate(pieces)]
    return ChatCompletionRequest.model_validate({"messages": messages})


def _timed(work: Callable[[], _T]) -> tuple[_T, float]:
    started = time.process_time()
    result = work()
    return result, (time.process_time() - started) * 1000


if __name__ == "__main__":
    run()
