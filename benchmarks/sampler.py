"""Cost of one step of the sampler, beside the time to read its logits once.

    python -m benchmarks.sampler [--vocabulary 150000] [--batches 1,32,256] [--repeats 15]

The floor is bytes of logits over the bandwidth of a sum over as many bytes, measured between the
repeats of the same run. Logits look like a language model's: a few likely tokens, a long tail.
Appends one JSON record per batch and case to benchmarks/results/sampler.jsonl; `--dry` does not.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.record import append, conditions
from octavo_kernels.allocator import tune_allocator
from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.layers.sampling.rows import SamplingRow
from octavo_runtime.layers.sampling.sampler import Sampler
from octavo_runtime.layers.token_mask import apply_token_masks

RESULTS = "sampler.jsonl"
PROMPT_TOKENS, OUTPUT_TOKENS = 1000, 200
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top-k 50, top-p 0.95": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
    "top-p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "penalties": {
        "temperature": 0.0,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.1,
    },
    "logprobs 5": {"temperature": 0.0, "logprobs": 5},
    "token mask": {"temperature": 0.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=150_000)
    parser.add_argument("--batches", default="1,32,256")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--dry", action="store_true", help="print, and record nothing")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    tune_allocator()  # as the engine does
    with torch.inference_mode():
        for batch in map(int, arguments.batches.split(",")):
            logits = language_like_logits(batch, arguments.vocabulary)
            for case, params in CASES.items():
                figures = measure(case, params, logits, arguments.repeats)
                settings = {
                    "case": case,
                    "batch": batch,
                    "vocabulary": arguments.vocabulary,
                    "repeats": arguments.repeats,
                    "threads": torch.get_num_threads(),
                }
                print(settings, figures, flush=True)
                if not arguments.dry:
                    append(RESULTS, {**figures, **settings, **conditions()})


def measure(
    case: str, params: dict[str, Any], logits: torch.Tensor, repeats: int
) -> dict[str, float]:
    """Medians in microseconds; a step changes its logits, so each gets a fresh copy, untimed."""
    num_rows, vocab_size = logits.shape
    sampler = Sampler()
    rows = [sequence(params, seed, vocab_size) for seed in range(num_rows)]
    mask = np.full(-(-vocab_size // 32), 0x55555555, dtype=np.int32)
    masks = dict.fromkeys(range(num_rows), mask) if case == "token mask" else {}

    def step(values: torch.Tensor) -> None:
        apply_token_masks(values, masks)
        sampler.sample(values, rows)

    step(logits.clone())
    steps, reads = [], []
    for _ in range(repeats):
        values = logits.clone()
        steps.append(seconds(lambda values=values: step(values)))  # type: ignore[misc]
        reads.append(seconds(values.sum))
    floor, cost = statistics.median(reads) * 1e6, statistics.median(steps) * 1e6
    return {
        "step_us": round(cost, 1),
        "floor_us": round(floor, 1),
        "times_floor": round(cost / floor, 2),
        "read_gb_per_s": round(logits.nbytes / floor / 1e3, 1),
        "us_per_row": round(cost / num_rows, 2),
    }


def sequence(params: dict[str, Any], seed: int, vocab_size: int) -> SamplingRow:
    """One in the middle of its output, as a row that has been through many steps."""
    random = np.random.default_rng(seed)
    prompt = random.integers(0, vocab_size, PROMPT_TOKENS).tolist()
    row = SamplingRow(SamplingParams(**params), seed=seed, prompt_token_ids=prompt)
    for token_id in random.integers(0, vocab_size, OUTPUT_TOKENS).tolist():
        row.append(token_id)
    return row


def language_like_logits(num_rows: int, vocab_size: int) -> torch.Tensor:
    """fp32: a normal tail, and twenty tokens that stand out by 8 to 20."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_rows, vocab_size, generator=generator) * 2
    likely = torch.randint(0, vocab_size, (num_rows, 20), generator=generator)
    return logits.scatter_add_(1, likely, torch.linspace(8, 20, 20).expand(num_rows, -1))


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
