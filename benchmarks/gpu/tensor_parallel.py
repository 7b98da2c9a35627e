"""What a second GPU of the node gives: Llama-3.1-8B's shape, random weights, one GPU and two.

    python -m benchmarks.gpu.tensor_parallel [--ranks 1 2] [--batches 1 64 256] [--prompts 4]

Decode steps of a batch at context 1,024, sampled, each launched while the one before runs, as the
engine does: milliseconds from step to step, and `device_ms`, the device's part of it. Prefill:
tokens per second of steps of whole prompts of 2,048 tokens. Records go to
benchmarks/results/h200.json.

The floor is what the bytes of a step (decode), or its operations (prefill), take divided by the
ranks, at the rates that one GPU shows in this run, and the sums after o_proj and down_proj of every
layer, each of tokens x hidden_size numbers in bf16: a rank of two sends them once, and a fourth
generation NVLink of 18 lanes carries 450 GB/s each way.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu.models import (
    SHAPES,
    kv_bytes_per_token,
    prefill_flops,
    weight_bytes,
    write_model,
)
from benchmarks.gpu.report import Report
from benchmarks.record import RESULTS
from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.config import EngineConfig
from octavo_runtime.layers.sampling.rows import SamplingRow
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.worker.device import new_model_runner, resolve_config
from octavo_runtime.worker.model_runner import SampleWork
from octavo_runtime.worker.served_model import StepRunner
from octavo_runtime.worker.step_input import StepSequence

MODEL = "llama-3.1-8b"
CONTEXT, BLOCK_SIZE, STEPS, PROMPT = 1024, 16, 60, 2048
BLOCKS = PROMPT // BLOCK_SIZE
NVLINK_BYTES_PER_S = 450e9


def new_runner(folder: Path, ranks: int, batches: Sequence[int], prompts: int) -> StepRunner:
    config = EngineConfig(
        model=folder,
        load_format="dummy",
        max_model_len=PROMPT,
        max_num_seqs=max(batches),
        max_num_batched_tokens=prompts * PROMPT,
        cuda_graph_sizes=tuple(batches),
        tensor_parallel_size=ranks,
    )
    model_config = ModelConfig.from_folder(folder, {})
    runner = new_model_runner(resolve_config(config), model_config, PROMPT)
    runner.allocate_kv_cache(max(*batches, prompts) * BLOCKS)
    runner.warm_up(PROMPT)
    return runner


def step_times(runner: StepRunner, steps: Sequence[list[StepSequence]]) -> tuple[float, float]:
    """Median seconds from the end of a step to the end of the next, and of the device's part."""
    row = SamplingRow(SamplingParams(temperature=0.0))
    ends, device = [], []
    running = None
    for step in [*steps, None]:
        launched = None
        if step is not None:
            launched = runner.launch(step, SampleWork(dict.fromkeys(range(len(step)), row)))
        if running is not None:
            device.append(running.result().device_s or 0.0)
            ends.append(time.perf_counter())
        running = launched
    between = [after - before for before, after in itertools.pairwise(ends[4:])]
    return statistics.median(between), statistics.median(device[4:])


def table(place: int) -> range:
    return range(place * BLOCKS, (place + 1) * BLOCKS)


def decode(runner: StepRunner, batch: int) -> tuple[float, float]:
    steps = [
        [
            StepSequence([1], CONTEXT + number, table(place), key=str(place))
            for place in range(batch)
        ]
        for number in range(STEPS)
    ]
    return step_times(runner, steps)


def prefill(runner: StepRunner, prompts: int) -> tuple[float, float]:
    step = [StepSequence([1] * PROMPT, 0, table(place), key=str(place)) for place in range(prompts)]
    return step_times(runner, [step] * 16)


def exchange_s(num_tokens: int, ranks: int) -> float:
    """Of the sums of a step, where all of NVLink carries them."""
    shape = SHAPES[MODEL]
    num_bytes = 2 * shape["num_hidden_layers"] * num_tokens * shape["hidden_size"] * 2
    return float(2 * (ranks - 1) / ranks * num_bytes / NVLINK_BYTES_PER_S)


def measure(report: Report, runner: StepRunner, ranks: int, options: argparse.Namespace) -> None:
    for batch in options.batches:
        step_s, device_s = decode(runner, batch)
        num_bytes = weight_bytes(MODEL) + batch * CONTEXT * kv_bytes_per_token(MODEL)
        floor = num_bytes / ranks / report.bandwidth + exchange_s(batch, ranks)
        report.add(
            f"TP{ranks} decode {batch}",
            MODEL,
            step_s * 1e3,
            "ms",
            floor=floor * 1e3,
            batch=batch,
            ranks=ranks,
            device_ms=device_s * 1e3,
        )
    num_tokens = options.prompts * PROMPT
    step_s, device_s = prefill(runner, options.prompts)
    flops = prefill_flops(MODEL, [PROMPT] * options.prompts)
    floor = flops / ranks / report.rate + exchange_s(num_tokens, ranks)
    report.add(
        f"TP{ranks} prefill {options.prompts}x{PROMPT}",
        MODEL,
        num_tokens / step_s,
        "tokens/s",
        floor=num_tokens / floor,
        higher_is_better=True,
        ranks=ranks,
        device_ms=device_s * 1e3,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--prompts", type=int, default=4, help="prompts of a prefill step")
    options = parser.parse_args()
    report = Report()
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as root:
        folder = write_model(MODEL, Path(root))
        for ranks in options.ranks:
            runner = new_runner(folder, ranks, options.batches, options.prompts)
            print({name: round(seconds, 2) for name, seconds in runner.stages.items()}, flush=True)
            measure(report, runner, ranks, options)
            runner.drop_kv_cache()
            runner.drop_model()
            runner.close()
    report.write(RESULTS / "h200.json")


if __name__ == "__main__":
    main()
