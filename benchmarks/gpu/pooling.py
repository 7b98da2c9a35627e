"""Encoders on one GPU with random weights: token ids in, vectors out.

    python -m benchmarks.gpu.pooling [--models bge-large xlm-r-large] [--out FILE]

    E1  1,024 prompts of 16 to 512 tokens (as many short as long ones, seed 0): prompt tokens/s
    E2  256 prompts of 512 tokens: prompt tokens/s
    E3  one prompt of 128 tokens after the other: ms for each
    attention  of one layer in a step of E2, in ms, beside torch's own attention of ragged batches

Floors: the operations of matrices and attention, without any padding, over the rate of this GPU's
bf16 matrix product; for E3 reading the weights once. One record for each row goes to
benchmarks/results/h200.json.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.report import Report
from benchmarks.record import RESULTS
from octavo_kernels.encoder_attention import encoder_attention
from octavo_protocol.pooling import PoolingParams
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.pooling_engine import PoolingEngine

_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "dtype": "bfloat16",
}
SHAPES: dict[str, dict[str, Any]] = {
    "bge-large": _LARGE
    | {
        "architectures": ["BertModel"],
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "pad_token_id": 0,
    },
    "xlm-r-large": _LARGE
    | {
        "architectures": ["XLMRobertaModel"],
        "vocab_size": 250002,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "pad_token_id": 1,
    },
}
_SHORTEST, _LONGEST = 16, 512


def encoder_flops(shape: dict[str, Any], lengths: list[int]) -> float:
    """Of whole prompts: four square matrices and two of the MLP a layer, and attention."""
    hidden = shape["hidden_size"]
    matrices = 4 * hidden * hidden + 2 * hidden * shape["intermediate_size"]
    pairs = sum(length * length for length in lengths)
    return float(shape["num_hidden_layers"] * (2 * matrices * sum(lengths) + 4 * hidden * pairs))


def encoder_bytes(shape: dict[str, Any]) -> int:
    """Bytes of the layers' matrices in bf16."""
    hidden = shape["hidden_size"]
    matrices = 4 * hidden * hidden + 2 * hidden * shape["intermediate_size"]
    return int(2 * shape["num_hidden_layers"] * matrices)


def mixed_lengths(count: int) -> list[int]:
    rng = random.Random(0)
    ratio = _LONGEST / _SHORTEST
    return [round(_SHORTEST * ratio ** rng.random()) for _ in range(count)]


def run(engine: PoolingEngine, lengths: list[int]) -> float:
    """Seconds from the first request to the last vector."""
    rng = random.Random(0)
    vocab_size = engine.info.vocab_size
    prompts = [[rng.randrange(1000, vocab_size) for _ in range(length)] for length in lengths]
    started = time.perf_counter()
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), prompt, PoolingParams())
    while engine.has_unfinished_requests():
        engine.step()
    return time.perf_counter() - started


def best_ms(call: Callable[[], Any]) -> float:
    """Of 20 runs on the GPU."""
    times = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(float(start.elapsed_time(end)))
    return min(times)


def measure_engine(name: str, report: Report) -> None:
    shape = SHAPES[name]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(shape))
        engine = PoolingEngine(
            EngineConfig(model=Path(folder), load_format="dummy", is_offline=True)
        )
        for workload, lengths in (("E1", mixed_lengths(1024)), ("E2", [_LONGEST] * 256)):
            run(engine, lengths)
            tokens = sum(lengths)
            report.add(
                workload,
                name,
                tokens / run(engine, lengths),
                "tok/s",
                floor=tokens * report.rate / encoder_flops(shape, lengths),
                higher_is_better=True,
            )
        floor_ms = encoder_bytes(shape) / report.bandwidth * 1e3
        single = [run(engine, [128]) * 1e3 for _ in range(50)][10:]
        report.add("E3", name, sorted(single)[len(single) // 2], "ms", floor=floor_ms, batch=1)
        engine.shutdown()


def measure_attention(report: Report, num_sequences: int = 32) -> None:
    """Of bge-large's shape, which is xlm-r-large's too."""
    heads, head_dim = 16, 64
    shape = (num_sequences * _LONGEST, 3 * heads, head_dim)
    fused = torch.randn(shape, device="cuda").bfloat16()
    query, key, value = fused[:, :heads], fused[:, heads : 2 * heads], fused[:, 2 * heads :]
    starts = torch.arange(num_sequences + 1, device="cuda", dtype=torch.int32) * _LONGEST
    pairs = num_sequences * _LONGEST**2
    floor = 4 * heads * head_dim * pairs / report.rate * 1e3

    def ours() -> None:
        encoder_attention(query, key, value, starts, max_query_len=_LONGEST, scale=head_dim**-0.5)

    ours()
    report.add("attention", "bge-large", best_ms(ours), "ms", floor=floor, batch=num_sequences)
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # before torch 2.10
        return

    def theirs() -> None:
        varlen_attn(query, key, value, starts, starts, _LONGEST, _LONGEST)

    theirs()
    report.add(
        "attention torch", "bge-large", best_ms(theirs), "ms", floor=floor, batch=num_sequences
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--out", type=Path, default=RESULTS / "h200.json")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch sees no NVIDIA GPU here; nvidia-smi tells whether the driver does")
    report = Report()
    measure_attention(report)
    for model in arguments.models:
        measure_engine(model, report)
        report.write(arguments.out)


if __name__ == "__main__":
    main()
