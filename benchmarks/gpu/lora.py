"""What adapters cost a step on one GPU: Llama-3.1-8B's shape, random weights.

    python -m benchmarks.gpu.lora [--ranks 16 64] [--adapters 1 8 64 256] [--batches 1 8 64 256]

Steps of a batch at context 1,024 with a number of adapters among its sequences, in turns with steps
without any, and the same for a step of 8 prompts of 256 tokens; medians of the time that the device
takes. There are slots for the largest number of adapters, which must fit beside the KV cache of the
largest batch: at rank 64, 64 of them beside a batch of 64. Records go to
benchmarks/results/h200.json, `plain_ms` beside the value, which is in milliseconds too.

The floor of what is added is bytes: A and B of the distinct adapters once, at the read rate that
the GPU shows. Inputs and outputs of the layers (11 MB a layer at batch 64) lie in the L2 cache. An
adapter of rank 16 has 81,920 x 16 numbers in each of 32 layers where it changes all linear ones:
84 MB in bf16; 13.6 MB where it changes q_proj and v_proj alone. At 4.2 TB/s, in ms:

    distinct adapters             1      8     64    256
    rank 16, all linear layers    0.02   0.16  1.28   5.11
    rank 64, all linear layers    0.08   0.64  5.11  20.45
    rank 16, q_proj and v_proj    0.003  0.03  0.21   0.83

A step of batch 64 without adapters took 6.73 ms (W2 of `benchmarks.gpu.engine`). So no kernel can
keep 64 distinct adapters of rank 16 in all linear layers under 10 % of it: their bytes alone are
19 %. In q_proj and v_proj (`--targets q_proj v_proj`) they are 3 %.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu.models import write_model
from benchmarks.gpu.report import Report
from benchmarks.record import RESULTS
from octavo_runtime.config import EngineConfig, LoRAConfig
from octavo_runtime.lora.adapter import LoRAAdapter, LoRAMatrices
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.worker.device import new_model_runner, resolve_config
from octavo_runtime.worker.model_runner import SampleWork
from octavo_runtime.worker.served_model import StepRunner
from octavo_runtime.worker.step_input import StepSequence

MODEL = "llama-3.1-8b"
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONTEXT, BLOCK_SIZE, STEPS = 1024, 16, 20
MAX_LEN = CONTEXT + 8 * STEPS
PROMPTS, PROMPT_TOKENS = 8, 256


def adapter(runner: StepRunner, rank: int) -> LoRAAdapter:
    """Random, in pinned memory."""
    modules = {
        name: LoRAMatrices(
            torch.randn(rank, in_features, dtype=torch.bfloat16).pin_memory(),
            torch.zeros(out_features, rank, dtype=torch.bfloat16).pin_memory(),
        )
        for name, (out_features, in_features) in runner.adapter_targets.items()
    }
    return LoRAAdapter("random", "1", rank, modules)


def new_runner(
    folder: Path, rank: int, num_adapters: int, targets: Sequence[str], max_batch: int
) -> StepRunner:
    """Its slots are full."""
    lora = LoRAConfig(max_loras=num_adapters, max_lora_rank=rank, target_modules=tuple(targets))
    config = EngineConfig(
        model=folder,
        load_format="dummy",
        max_model_len=MAX_LEN,
        max_num_seqs=max_batch,
        max_num_batched_tokens=PROMPTS * PROMPT_TOKENS,
        block_size=BLOCK_SIZE,
        lora=lora,
    )
    model_config = ModelConfig.from_folder(folder, {})
    runner = new_model_runner(resolve_config(config), model_config, MAX_LEN)
    runner.allocate_kv_cache(max_batch * -(-MAX_LEN // BLOCK_SIZE))
    runner.warm_up(MAX_LEN)
    one = adapter(runner, rank)
    for slot in range(num_adapters):
        runner.set_adapter(slot, one)
    return runner


def step_ms(runner: StepRunner, slots: Sequence[int], start: int, num_tokens: int) -> list[float]:
    """Of steps of one sequence per slot, each with so many new tokens, from `start` on."""
    blocks = -(-MAX_LEN // BLOCK_SIZE)
    times = []
    for number in range(STEPS):
        step = [
            StepSequence(
                [1] * num_tokens,
                start + number if num_tokens == 1 else 0,
                range(place * blocks, (place + 1) * blocks),
                key=str(place),
                lora_slot=slot,
            )
            for place, slot in enumerate(slots)
        ]
        seconds = runner.launch(step, SampleWork()).result().device_s
        assert seconds is not None
        times.append(seconds * 1e3)
    return times[2:]


def measure(
    runner: StepRunner, batch: int, num_adapters: int, num_tokens: int = 1
) -> tuple[float, float]:
    """Median milliseconds of a step with adapters and without, in turns."""
    with_adapters: list[float] = []
    without: list[float] = []
    for turn in range(3):
        start = CONTEXT + 2 * turn * STEPS
        slots = [each % num_adapters for each in range(batch)]
        with_adapters += step_ms(runner, slots, start, num_tokens)
        without += step_ms(runner, [-1] * batch, start + STEPS, num_tokens)
    return statistics.median(with_adapters), statistics.median(without)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--targets", nargs="+", default=list(LINEAR), choices=LINEAR)
    options = parser.parse_args()
    report = Report()
    kind = "" if len(options.targets) == len(LINEAR) else " " + ",".join(options.targets)
    with tempfile.TemporaryDirectory() as root:
        folder = write_model(MODEL, Path(root))
        for rank in options.ranks:
            most = max(options.adapters)
            runner = new_runner(folder, rank, most, options.targets, max(options.batches))
            num_bytes = adapter(runner, rank).num_bytes
            for num_adapters in options.adapters:
                seconds = num_adapters * num_bytes / report.bandwidth
                for batch in options.batches:
                    if batch < num_adapters:
                        continue
                    value, plain = measure(runner, batch, num_adapters)
                    report.add(
                        f"LoRA r{rank} {num_adapters} of {batch}{kind}",
                        MODEL,
                        value,
                        "ms",
                        floor=plain + seconds * 1e3,
                        batch=batch,
                        plain_ms=plain,
                    )
                if num_adapters <= PROMPTS:
                    value, plain = measure(runner, PROMPTS, num_adapters, PROMPT_TOKENS)
                    report.add(
                        f"LoRA r{rank} {num_adapters} of prompts{kind}",
                        MODEL,
                        value,
                        "ms",
                        batch=PROMPTS,
                        plain_ms=plain,
                    )
            runner.drop_kv_cache()
            runner.drop_model()
    report.write(RESULTS / "h200.json")


if __name__ == "__main__":
    main()
