"""Embeddings on the CPU beside sentence-transformers, in the same process and run.

    python -m benchmarks.pooling [--models minilm bge-small] [--dtypes float32 bfloat16]
                                 [--vllm PYTHON]

Texts are this repository's documentation and sources, cut to pieces of 3 to 250 words (seed 0),
and truncated as the model says. Both sides get the same list and give vectors: `LLM.embed` and
`SentenceTransformer.encode`, which sorts by length and pads batches of 32. They take turns, so that
both meet the same noise; vectors are compared first. With --vllm, an interpreter that has vllm, it
is the third (`benchmarks/vllm_embeddings.py`). Floor: the operations of matrices and
attention without any padding, over the rate of a matrix product of 1,024 x 1,024 found between the
rounds.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.record import append, conditions
from octavo_kernels.allocator import tune_allocator
from octavo_kernels.linear import linear, pack_linear_weight
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.models.source import resolve_model

RESULTS = "pooling.jsonl"
ROOT = Path(__file__).parent.parent
Vectors = NDArray[np.float32]


def make_texts(count: int) -> list[str]:
    rng = random.Random(0)
    files = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("runtime/octavo_runtime/engine/*.py")])
    words = " ".join(path.read_text(encoding="utf-8") for path in files).split()
    texts = []
    for _ in range(count):
        length = round(3 * (250 / 3) ** rng.random())  # as many short as long ones
        start = rng.randrange(len(words) - length)
        texts.append(" ".join(words[start : start + length]))
    return texts


class Octavo:
    def __init__(self, folder: Path, dtype: str, step_tokens: int | None) -> None:
        from octavo import LLM

        self.llm = LLM(str(folder), dtype=dtype, max_num_batched_tokens=step_tokens)

    def embed(self, texts: list[str]) -> Vectors:
        outputs = self.llm.embed(
            texts, use_tqdm=False, tokenization_kwargs={"truncate_prompt_tokens": -1}
        )
        return np.array([each.outputs.embedding for each in outputs], dtype=np.float32)


class SentenceTransformers:
    def __init__(self, folder: Path, dtype: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.model: Any = SentenceTransformer(
            str(folder), device="cpu", model_kwargs={"dtype": getattr(torch, dtype)}
        )

    def embed(self, texts: list[str]) -> Vectors:
        vectors = self.model.encode(texts, convert_to_tensor=True, show_progress_bar=False)
        return np.asarray(vectors.float().numpy())

    def num_tokens(self, texts: list[str]) -> list[int]:
        encoded = self.model.tokenizer(texts, truncation=True, max_length=self.model.max_seq_length)
        return [len(ids) for ids in encoded["input_ids"]]


class Vllm:
    """`version` is vLLM's. It has the threads of this process, which then does nothing."""

    def __init__(self, python: str, folder: Path, dtype: str) -> None:
        command = [python, "-m", "benchmarks.vllm_embeddings", str(folder), dtype]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        )
        self.version = str(self._answer()["version"])

    def seconds(self, texts: list[str]) -> float:
        return float(self._ask(texts, vectors=False)["seconds"])

    def embed(self, texts: list[str]) -> Vectors:
        return np.array(self._ask(texts, vectors=True)["vectors"], dtype=np.float32)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, texts: list[str], *, vectors: bool) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"texts": texts, "vectors": vectors}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"vLLM ended with status {self._process.wait()}; see above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def flops(config: ModelConfig, lengths: list[int]) -> float:
    """Of whole prompts: four square matrices and two of the MLP a layer, scores and their sums."""
    hidden = config.hidden_size
    matrices = 4 * hidden * hidden + 2 * hidden * config.intermediate_size
    tokens, pairs = sum(lengths), sum(length * length for length in lengths)
    return float(config.num_layers * (2 * matrices * tokens + 4 * hidden * pairs))


def matrix_rate(dtype: torch.dtype) -> float:
    """Floating-point operations per second of the best of 20 products."""
    x = torch.randn(1024, 1024).to(dtype)
    weight = pack_linear_weight(torch.randn(1024, 1024).to(dtype))
    best = min(_seconds(lambda: linear(x, weight)) for _ in range(20))
    return 2 * 1024**3 / best


def _seconds(call: Any) -> float:
    """Of this process's one thread where there is one: a busy machine then distorts little."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    call()
    return clock() - started


def measure(name: str, dtype: str, options: argparse.Namespace) -> dict[str, float]:
    folder = resolve_model(name)
    texts = make_texts(options.texts)
    ours = Octavo(folder, dtype, options.step_tokens)
    theirs = SentenceTransformers(folder, dtype)
    lengths = theirs.num_tokens(texts)
    our_vectors = ours.embed(texts)
    similarity = float((our_vectors * theirs.embed(texts)).sum(1).min())
    samples: dict[str, list[float]] = {"octavo_s": [], "sentence_transformers_s": [], "rate": []}
    vllm = Vllm(options.vllm, folder, dtype) if options.vllm else None
    if vllm is not None:
        samples["vllm_s"] = []
        with_vllm = float((our_vectors * vllm.embed(texts)).sum(1).min())
    for _ in range(options.repeats):
        samples["octavo_s"].append(_seconds(lambda: ours.embed(texts)))
        samples["sentence_transformers_s"].append(_seconds(lambda: theirs.embed(texts)))
        if vllm is not None:
            samples["vllm_s"].append(vllm.seconds(texts))
        samples["rate"].append(matrix_rate(getattr(torch, dtype)))
    medians = {key: statistics.median(values) for key, values in samples.items()}
    floor_s = flops(ModelConfig.from_folder(folder), lengths) / max(samples["rate"])
    figures = {
        "texts_per_s": len(texts) / medians["octavo_s"],
        "tokens_per_s": sum(lengths) / medians["octavo_s"],
        "speedup": medians["sentence_transformers_s"] / medians["octavo_s"],
        "over_floor": medians["octavo_s"] / floor_s,
        "similarity": similarity,
    }
    if vllm is not None:
        figures["speedup_vllm"] = medians["vllm_s"] / medians["octavo_s"]
        figures["similarity_vllm"] = with_vllm
        vllm.close()
    record = {
        "model": name,
        "dtype": dtype,
        "texts": len(texts),
        "tokens": sum(lengths),
        "longest": max(lengths),
        "threads": torch.get_num_threads(),
        "step_tokens": options.step_tokens,
        "vllm": None if vllm is None else vllm.version,
        "repeats": options.repeats,
        "floor_s": floor_s,
        "medians": medians,
        "samples": samples,
        **figures,
        "load_1m": round(os.getloadavg()[0], 2),
        **conditions("sentence-transformers"),
    }
    if not options.dry:
        append(RESULTS, record)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["minilm", "bge-small"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--step-tokens", type=int, help="max_num_batched_tokens; default: Octavo's")
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--vllm", metavar="PYTHON", help="an interpreter that has vllm (for CPUs)")
    parser.add_argument("--dry", action="store_true", help="record nothing")
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if options.threads:
        torch.set_num_threads(options.threads)
    tune_allocator()
    for name in options.models:
        for dtype in options.dtypes:
            figures = measure(name, dtype, options)
            shown = " ".join(f"{key}={value:.4g}" for key, value in figures.items())
            print(f"bench-pooling {name} {dtype} {shown}", flush=True)


if __name__ == "__main__":
    main()
