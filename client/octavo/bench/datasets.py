"""Workloads from local files: conversations, own prompts, and traces of real traffic.

sharegpt      JSON: [{"conversations": [{"value": prompt}, {"value": answer}, …]}, …]
custom        JSON lines: {"prompt": text, "output_tokens": number (optional)}
burstgpt      CSV with the columns "Request tokens" and "Response tokens" (and "Timestamp", seconds)
timed_trace   JSON lines: {"timestamp": milliseconds, "input_length", "output_length",
              "hash_ids": ids of blocks of 512 tokens that prompts share (optional)}

Prompts of the last two are random tokens of the recorded lengths.
"""

import csv
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from octavo.bench.workload import BenchRequest, random_tokens
from octavo_protocol.errors import ConfigError, OctavoError
from octavo_protocol.tokenizer import Tokenizer

FileDataset = Literal["sharegpt", "custom", "burstgpt", "timed_trace"]
_BLOCK = 512
_MIN_TOKENS = 4  # shorter turns of conversations say nothing
_MAX_PROMPT, _MAX_TOTAL = 1024, 2048


@dataclass(frozen=True, slots=True)
class DatasetFile:
    """output_len: for every request; None: what the file says. keeps_times: requests are sent when
    the trace says. vocab_size: of random tokens.
    """

    kind: FileDataset
    path: Path
    num_prompts: int
    output_len: int | None = None
    keeps_times: bool = False
    seed: int = 0

    def requests(self, tokenizer: Tokenizer | None, vocab_size: int) -> list[BenchRequest]:
        """At most `num_prompts` of the file, in a random order unless they have times.

        Raises `ConfigError` that names the file and its line.
        """
        rng = random.Random(self.seed)
        made: list[BenchRequest] = []
        records = list(_RECORDS[self.kind](self.path))
        if not self.keeps_times:
            rng.shuffle(records)
        for number, record in records:
            if len(made) == self.num_prompts:
                break
            try:
                request = self._request(record, tokenizer, rng, vocab_size)
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                if isinstance(error, OctavoError):
                    raise
                raise ConfigError(
                    f"{self.path}: record {number} is not of the form {self.kind}: {error!r}"
                ) from error
            if request is not None:
                made.append(request)
        if not made:
            raise ConfigError(f"{self.path} has no requests of the form {self.kind}")
        return made

    def _request(
        self, record: Any, tokenizer: Tokenizer | None, rng: random.Random, vocab_size: int
    ) -> BenchRequest | None:
        if self.kind == "sharegpt":
            return self._conversation(record, self._needed(tokenizer))
        if self.kind == "custom":
            text = record["prompt"]
            return BenchRequest(
                self._needed(tokenizer).encode(text),
                self.output_len or int(record.get("output_tokens", 256)),
                text,
            )
        return self._recorded(record, rng, vocab_size)

    def _conversation(self, record: Any, tokenizer: Tokenizer) -> BenchRequest | None:
        """The first question of a conversation; None where it is too short or too long."""
        turns = record["conversations"]
        if len(turns) < 2:
            return None
        text = turns[0]["value"]
        prompt = tokenizer.encode(text)
        output_len = self.output_len or len(tokenizer.encode(turns[1]["value"]))
        is_short = len(prompt) < _MIN_TOKENS or output_len < _MIN_TOKENS
        is_long = len(prompt) > _MAX_PROMPT or len(prompt) + output_len > _MAX_TOTAL
        return None if is_short or is_long else BenchRequest(prompt, output_len, text)

    def _recorded(
        self, record: Mapping[str, Any], rng: random.Random, vocab_size: int
    ) -> BenchRequest | None:
        input_len, output_len = int(record["input_length"]), int(record["output_length"])
        if input_len < 1 or output_len < 1:  # a request that failed when it was recorded
            return None
        prompt: list[int] = []
        for block in record.get("hash_ids") or ():
            own = random.Random(f"{self.seed}:{block}")
            prompt += random_tokens(own, _BLOCK, vocab_size)
        prompt += random_tokens(rng, max(0, input_len - len(prompt)), vocab_size)
        arrival_s = float(record["timestamp"]) / 1000 if self.keeps_times else None
        return BenchRequest(prompt[:input_len], self.output_len or output_len, None, arrival_s)

    def _needed(self, tokenizer: Tokenizer | None) -> Tokenizer:
        if tokenizer is None:
            raise ConfigError(f"the dataset {self.kind} needs --tokenizer, to count tokens")
        return tokenizer


_Records = Iterator[tuple[int, Any]]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the dataset {path}: {error}") from error


def _json_array(path: Path) -> _Records:
    try:
        records = json.loads(_read(path))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    yield from enumerate(records if isinstance(records, list) else [records], start=1)


def _json_lines(path: Path) -> _Records:
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{path}: line {number} is not JSON: {error}") from error


def _burstgpt(path: Path) -> _Records:
    for number, row in enumerate(csv.DictReader(_read(path).splitlines()), start=2):
        yield (
            number,
            {
                "timestamp": float(row.get("Timestamp") or 0) * 1000,
                "input_length": row.get("Request tokens"),
                "output_length": row.get("Response tokens"),
            },
        )


_RECORDS: dict[FileDataset, Callable[[Path], _Records]] = {
    "sharegpt": _json_array,
    "custom": _json_lines,
    "burstgpt": _burstgpt,
    "timed_trace": _json_lines,
}
