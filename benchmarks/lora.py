"""What adapters cost a step on the CPU, and whether answers stay right and blocks come back.

    python -m benchmarks.lora [--dtype bfloat16] [--rounds 4] [--adapters 100]

overhead_cpu_8   decode steps of 8 requests with 8 adapters (rank 16, all linear layers), against
                 the same without adapters: both in one process, in turns. The fastest step of each
                 counts, since other processes only ever add to one.
wrong            of 9 requests (8 adapters and none) in one batch those whose tokens are not the
                 ones that they get alone, and those that get the model's own in spite of an
                 adapter; fp32, greedy. The 8 are random; where trained adapters are kept
                 (`make adapters`), the same of a batch with these.
leak_blocks      blocks that are not free after random traffic of many adapters through 8 slots and
                 a host tier of 16, in which requests are aborted and adapters unloaded.

The floor of the overhead is bytes: those of the adapters beside those of the model's weights.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tests.fakes.lora_adapters import ALL_LINEAR, write_adapter
from tests.fakes.trained_adapters import QUESTIONS, kept_adapters

from benchmarks.record import append, conditions
from octavo_kernels.allocator import tune_allocator
from octavo_protocol.sampling_params import SamplingParams
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.config import EngineConfig, LoRAConfig
from octavo_runtime.engine.engine_core import EngineCore
from octavo_runtime.engine.messages import EngineRequest
from octavo_runtime.models.source import resolve_model

RESULTS = "lora.jsonl"
NUM_ADAPTERS, RANK = 8, 16
PROMPT_LEN, DECODES = 32, 24


class Engine:
    """A core with 8 slots, and adapters that it knows."""

    def __init__(self, folder: Path, dtype: str, num_threads: int | None, **lora: Any) -> None:
        config = LoRAConfig(max_loras=NUM_ADAPTERS, max_lora_rank=RANK, **lora)
        self.core = EngineCore(
            EngineConfig(
                model=folder,
                device="cpu",
                dtype=dtype,  # type: ignore[arg-type]
                max_model_len=512,
                num_threads=num_threads,
                lora=config,
            )
        )
        self._count = 0
        self.tokens: dict[str, list[int]] = {}

    def load(self, name: str, path: Path) -> dict[str, Any]:
        answer = self.core.load_adapter(name, str(path))
        self.core.finish_loads()
        result: dict[str, Any] = answer.result(0)
        return result

    def add(self, prompt: list[int], adapter: str, max_tokens: int) -> str:
        self._count += 1
        name = str(self._count)
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        self.tokens[name] = []
        self.core.add_request(EngineRequest(name, prompt, params, 0.0, adapter=adapter))
        return name

    def step(self) -> int:
        """Number of sequences that got a token."""
        outputs = self.core.step().outputs
        for output in outputs:
            self.tokens[output.request_id] += output.new_token_ids
        return len(outputs)

    def answers(
        self, requests: Sequence[tuple[list[int], str]], max_tokens: int
    ) -> list[list[int]]:
        """Of requests in one batch: prompt and adapter of each."""
        names = [self.add(prompt, adapter, max_tokens) for prompt, adapter in requests]
        while self.core.has_work():
            self.step()
        return [self.tokens.pop(name) for name in names]


def prompts(count: int, vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    shape = (count, PROMPT_LEN)
    return torch.randint(10, vocab_size, shape, generator=generator).tolist()


def question(folder: Path) -> list[int]:
    """What trained adapters answer in another form than the model."""
    tokenizer = Tokenizer.from_folder(folder)
    text = tokenizer.apply_chat_template([{"role": "user", "content": QUESTIONS[0]}])
    return tokenizer.encode(text, add_special_tokens=False)


def clock() -> float:
    """Seconds; of the processor where there is one thread, which others delay less."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def decode_times(engine: Engine, adapters: Sequence[str]) -> list[float]:
    """Seconds of the steps that give each of the requests, one per adapter, a token."""
    texts = prompts(len(adapters), engine.core.info.vocab_size)
    names = [engine.add(*each, DECODES) for each in zip(texts, adapters, strict=True)]
    times = []
    while engine.core.has_work():
        started = clock()
        count = engine.step()
        times.append(clock() - started)
        if count < len(adapters):
            times.clear()
    for name in names:
        del engine.tokens[name]
    return times[1:]


def measure_overhead(engine: Engine, adapters: Sequence[str], rounds: int) -> dict[str, Any]:
    plain, mixed = [""] * len(adapters), list(adapters)
    one = [adapters[0]] * len(adapters)
    kinds = {"none": plain, "distinct": mixed, "same": one}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for round_ in range(rounds + 1):
        for kind, of_kind in kinds.items():
            engine.core.reset_prefix_cache()
            found = decode_times(engine, of_kind)
            if round_ > 0:  # the first compiles and warms up
                times[kind] += found
    step_ms = {kind: min(each) * 1e3 for kind, each in times.items()}
    return {
        "step_ms": step_ms,
        "median_ms": {kind: statistics.median(each) * 1e3 for kind, each in times.items()},
        "overhead_distinct": step_ms["distinct"] / step_ms["none"] - 1,
        "overhead_same": step_ms["same"] / step_ms["none"] - 1,
    }


def count_wrong(engine: Engine, text: list[int], adapters: Sequence[str]) -> int:
    """Requests whose tokens depend on their neighbours, or not on having an adapter."""
    requests = [(text, adapter) for adapter in ["", *adapters]]
    together = engine.answers(requests, 16)
    engine.core.reset_prefix_cache()
    alone = [engine.answers([request], 16)[0] for request in requests]
    num_unchanged = sum(tokens == alone[0] for tokens in alone[1:])
    return sum(a != b for a, b in zip(together, alone, strict=True)) + num_unchanged


def count_leaks(engine: Engine, folders: Sequence[Path], num_adapters: int) -> int:
    """Blocks that are gone after random traffic."""
    chance = random.Random(0)
    texts = prompts(4, engine.core.info.vocab_size)
    running: list[str] = []
    scheduler = engine.core.scheduler
    for number in range(num_adapters):
        loaded = engine.load(f"traffic-{number}", chance.choice(folders))
        identity = f"{loaded['name']}@{loaded['version']}"
        for _ in range(chance.randint(1, 2)):
            running.append(engine.add(chance.choice(texts), identity, chance.randint(1, 12)))
        if chance.random() < 0.2:
            engine.core.abort([chance.choice(running)])
        if chance.random() < 0.2:
            engine.core.unload_adapter(loaded["name"])
        while len(scheduler.running) + len(scheduler.waiting) > 12:
            engine.step()
    while engine.core.has_work():
        engine.step()
    pool = scheduler.pool
    return pool.num_blocks - pool.num_free


def model_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--adapters", type=int, default=100, help="of the random traffic")
    parser.add_argument("--threads", type=int, help="default: the engine's choice")
    options = parser.parse_args()
    allocator = tune_allocator()
    folder = resolve_model(options.model)
    with tempfile.TemporaryDirectory() as root:
        folders = [
            write_adapter(
                Path(root) / str(seed),
                folder,
                seed=seed,
                rank=RANK,
                alpha=RANK,
                targets=ALL_LINEAR,
                scale=0.2,
                dtype=torch.bfloat16,
            )
            for seed in range(NUM_ADAPTERS)
        ]
        engine = Engine(folder, options.dtype, options.threads)
        loaded = [engine.load(str(seed), path) for seed, path in enumerate(folders)]
        adapters = [f"{each['name']}@{each['version']}" for each in loaded]
        figures = measure_overhead(engine, adapters, options.rounds)
        del engine
        exact = Engine(folder, "float32", options.threads, max_cpu_loras=2 * NUM_ADAPTERS)
        adapters = [f"{n}@{exact.load(str(n), p)['version']}" for n, p in enumerate(folders)]
        wrong = count_wrong(exact, prompts(1, exact.core.info.vocab_size)[0], adapters)
        if trained := kept_adapters(folder):
            asked = [f"{n}@{exact.load(n, path)['version']}" for n, path in trained.items()]
            wrong += count_wrong(exact, question(folder), asked)
        leak_blocks = count_leaks(exact, folders, options.adapters)
    itemsize = 2 if options.dtype == "bfloat16" else 4
    record = {
        "workload": "8 decodes",
        "model": folder.name,
        "dtype": options.dtype,
        "threads": torch.get_num_threads(),
        "clock": "processor" if torch.get_num_threads() == 1 else "wall",
        "allocator": allocator,
        "rank": RANK,
        "rounds": options.rounds,
        "adapter_bytes": loaded[0]["num_bytes"],
        "load_s": statistics.median(each["seconds"] for each in loaded),
        "floor": sum(each["num_bytes"] for each in loaded) / (model_bytes(folder) / 2 * itemsize),
        **figures,
        "load_1m": round(os.getloadavg()[0], 2),
        "traffic_adapters": options.adapters,
        "trained_adapters": sorted(trained),
        "wrong": wrong,
        "leak_blocks": leak_blocks,
        **conditions(),
    }
    append(RESULTS, record)
    for kind, milliseconds in figures["step_ms"].items():
        print(f"  {kind:<9} {milliseconds:7.2f} ms a step")
    print(f"  floor     {record['floor']:.3f} of a step's bytes")
    overhead = figures["overhead_distinct"]
    print(f"lora overhead_cpu_8={overhead:.3f} leak_blocks={leak_blocks} wrong={wrong}")


if __name__ == "__main__":
    main()
