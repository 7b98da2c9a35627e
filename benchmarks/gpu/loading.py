"""How fast weights get from files to a GPU, beside reading the files and safetensors' own loading.

    python -m benchmarks.gpu.loading [--folder /models] [--layers 8] [--threads 8] [--part-mib 8]

Writes a checkpoint of the 8B shape with fewer layers, in shards, and loads it: cold, from the disk,
and warm, from the page cache. GB/s; the last setting's go to benchmarks/results/h200.json, with
reading alone as their floor.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.gpu.models import write_model
from benchmarks.gpu.report import write_rows
from benchmarks.record import RESULTS
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.models.loader import weight_targets
from octavo_runtime.models.registry import build_model
from octavo_runtime.models.weight_stream import stored_tensors, stream_tensors

_SHARD_BYTES = 2 * 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--threads", type=int, nargs="+", default=[8])
    parser.add_argument("--part-mib", type=int, nargs="+", default=[8])
    parser.add_argument("--out", type=Path, default=RESULTS / "h200.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = write_model("llama-3.1-8b", Path(name))
        config = replace(ModelConfig.from_folder(folder), num_layers=arguments.layers)
        with torch.device("cuda"):
            model = build_model(config, torch.bfloat16)
        targets = dict(weight_targets(model))
        for target in targets.values():
            target.normal_()
        files = _write(targets, folder)
        num_bytes = sum(path.stat().st_size for path in files)
        print(f"{num_bytes / 1e9:.2f} GB in {len(files)} files; GB/s cold, then warm")
        for threads in arguments.threads:
            floors = _report(f"read, {threads} threads", partial(_read, files, threads), files)
        _report("safetensors", partial(_load_by_safetensors, targets, files), files)
        for threads in arguments.threads:
            for mib in arguments.part_mib:
                settings = {"num_threads": threads, "part_bytes": mib * 2**20}
                rates = _report(
                    f"stream, {threads} threads, {mib} MiB",
                    partial(_stream, targets, files, **settings),
                    files,
                )

    write_rows(
        arguments.out,
        [
            {
                "workload": f"load {name}",
                "model": "llama-3.1-8b",
                "batch": None,
                "value": rate,
                "unit": "GB/s",
                "floor": floor,
                "vllm": None,
                "higher_is_better": True,
                "num_layers": arguments.layers,
                **settings,
            }
            for name, rate, floor in zip(("cold", "warm"), rates, floors, strict=True)
        ],
    )


def _write(targets: dict[str, Tensor], folder: Path) -> list[Path]:
    files: list[Path] = []
    shard: dict[str, Tensor] = {}
    for index, (name, target) in enumerate(targets.items()):
        shard[name] = target.cpu()
        is_full = sum(each.nbytes for each in shard.values()) >= _SHARD_BYTES
        if is_full or index == len(targets) - 1:
            files.append(folder / f"model-{len(files):05}.safetensors")
            save_file(shard, files[-1])
            shard = {}
    weight_map = {each.name: path.name for path in files for each in stored_tensors(path)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return files


def _report(name: str, work: Callable[[], Any], files: list[Path]) -> list[float]:
    """GB/s cold and warm."""
    num_bytes = sum(path.stat().st_size for path in files)
    rates = []
    for is_cold in (True, False):
        if is_cold:
            _forget(files)
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        rates.append(num_bytes / (time.perf_counter() - started) / 1e9)
    print(f"{name:36}{rates[0]:8.2f}{rates[1]:8.2f}", flush=True)
    return rates


def _forget(files: list[Path]) -> None:
    """Takes the files out of the page cache."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(files: list[Path], num_threads: int) -> None:
    part = 8 * 2**20
    buffers = [bytearray(part) for _ in range(num_threads)]

    def read(index: int) -> None:
        for path in files:
            with path.open("rb", buffering=0) as file:
                size = path.stat().st_size
                for offset in range(index * part, size, num_threads * part):
                    os.preadv(file.fileno(), [buffers[index]], offset)

    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(read, range(num_threads)))


def _load_by_safetensors(targets: dict[str, Tensor], files: list[Path]) -> None:
    for path in files:
        with safetensors.safe_open(path, framework="pt", device="cuda") as file:
            for name in file.keys():  # noqa: SIM118  # a safe_open is no mapping
                targets[name].copy_(file.get_tensor(name))


def _stream(targets: dict[str, Tensor], files: list[Path], **settings: int) -> None:
    stored = {path: stored_tensors(path) for path in files}
    assert set(stream_tensors(stored, targets, **settings)) == set(targets)


if __name__ == "__main__":
    main()
