"""The flags that choose a workload, for every `octavo bench` command that has one."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from octavo_protocol.errors import ConfigError

if TYPE_CHECKING:
    from octavo.bench.workload import BenchRequest
    from octavo_protocol.tokenizer import Tokenizer

DatasetName = Literal[
    "random", "prefix_repetition", "sharegpt", "custom", "burstgpt", "timed_trace"
]
_LENGTH = "a number, or a range as 64-256"
_DEFAULT_INPUT, _DEFAULT_OUTPUT = "64-256", "64-128"


def _option(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Workload", **settings)


# name -> (type, default, option)
_FLAGS: dict[str, tuple[Any, Any, Any]] = {
    "dataset_name": (
        DatasetName,
        "random",
        _option("--dataset-name", help="Random tokens, or what the file --dataset-path holds."),
    ),
    "dataset_path": (
        Path | None,
        None,
        _option("--dataset-path", help="File of sharegpt, custom, burstgpt or timed_trace."),
    ),
    "num_prompts": (int, 100, _option("--num-prompts", min=1, help="Requests in all.")),
    "input_len": (
        str,
        _DEFAULT_INPUT,
        _option("--input-len", "--random-input-len", help=f"Prompt tokens (random): {_LENGTH}."),
    ),
    "output_len": (
        str | None,
        None,
        _option(
            *("--output-len", "--random-output-len", "--sharegpt-output-len"),
            *("--custom-output-len", "--prefix-repetition-output-len"),
            help=f"Output tokens: {_LENGTH} (random). Default: {_DEFAULT_OUTPUT}, 128, or what "
            "the file says.",
        ),
    ),
    "range_ratio": (
        float,
        0.0,
        _option(
            *("--range-ratio", "--random-range-ratio"),
            min=0.0,
            max=0.99,
            help="Lengths given as one number vary by this share, both ways (random).",
        ),
    ),
    "prefix_len": (
        int,
        0,
        _option(
            *("--prefix-len", "--random-prefix-len"),
            min=0,
            help="Tokens that all prompts share at their start (random).",
        ),
    ),
    "prefix_repetition_prefix_len": (
        int,
        256,
        _option("--prefix-repetition-prefix-len", min=1, help="Tokens of each prefix."),
    ),
    "prefix_repetition_suffix_len": (
        int,
        256,
        _option("--prefix-repetition-suffix-len", min=1, help="Tokens after the prefix."),
    ),
    "prefix_repetition_num_prefixes": (
        int,
        10,
        _option("--prefix-repetition-num-prefixes", min=1, help="Number of prefixes."),
    ),
}
PARAMETERS = [
    inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )
    for name, (kind, default, option) in _FLAGS.items()
]


@dataclass(frozen=True, slots=True)
class Workload:
    """The workload that flags ask for. keeps_times: requests of a trace are sent when it says."""

    flags: Mapping[str, Any]
    seed: int
    keeps_times: bool = False

    @property
    def is_synthetic(self) -> bool:
        """The prompts are random tokens, whose answers have no natural end."""
        return self.flags["dataset_name"] not in ("sharegpt", "custom")

    def requests(self, tokenizer: "Tokenizer | None", vocab_size: int) -> "list[BenchRequest]":
        """Raises `ConfigError` for flags or a file that cannot be used."""
        from octavo.bench.datasets import DatasetFile
        from octavo.bench.workload import PrefixRepetitionWorkload, RandomWorkload

        flags, name = self.flags, self.flags["dataset_name"]
        count = flags["num_prompts"]
        if name == "random":
            ratio = flags["range_ratio"]
            return RandomWorkload(
                count,
                _varied(parse_range(flags["input_len"]), ratio),
                _varied(parse_range(flags["output_len"] or _DEFAULT_OUTPUT), ratio),
                flags["prefix_len"],
                self.seed,
            ).requests(vocab_size)
        output_len = _one_length(flags["output_len"])
        if name == "prefix_repetition":
            return PrefixRepetitionWorkload(
                count,
                flags["prefix_repetition_prefix_len"],
                flags["prefix_repetition_suffix_len"],
                flags["prefix_repetition_num_prefixes"],
                output_len or 128,
                self.seed,
            ).requests(vocab_size)
        if flags["dataset_path"] is None:
            raise ConfigError(f"--dataset-name {name} needs --dataset-path FILE")
        return DatasetFile(
            name, flags["dataset_path"], count, output_len, self.keeps_times, self.seed
        ).requests(tokenizer, vocab_size)


def parse_range(text: str) -> tuple[int, int]:
    """`64` is (64, 64), `64-256` is (64, 256). Raises `typer.BadParameter`."""
    low, _, high = text.partition("-")
    try:
        bounds = int(low), int(high or low)
    except ValueError:
        bounds = 0, 0
    if not 1 <= bounds[0] <= bounds[1]:
        raise typer.BadParameter(f"{text!r} is not a length; write {_LENGTH}")
    return bounds


def _varied(bounds: tuple[int, int], ratio: float) -> tuple[int, int]:
    return max(1, int(bounds[0] * (1 - ratio))), int(bounds[1] * (1 + ratio))


def _one_length(text: str | None) -> int | None:
    if text is None:
        return None
    low, high = parse_range(text)
    if low != high:
        raise typer.BadParameter(f"--output-len {text!r}: only the dataset random takes a range")
    return low
