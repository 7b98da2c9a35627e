"""Adapters in the engine, on a tiny random Llama: answers equal PEFT's merged models, greedy, fp32,
token for token, whatever else is in the batch and happens around it.
"""

import copy
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.fakes.lora_adapters import ALL_LINEAR, write_adapter
from transformers import LlamaConfig, LlamaForCausalLM

from octavo_protocol.errors import (
    AdapterNotFoundError,
    UnavailableError,
    ValidationError,
)
from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.config import EngineConfig, LoRAConfig
from octavo_runtime.engine.engine_core import EngineCore
from octavo_runtime.engine.messages import EngineRequest, EngineStats, LoRAInfo, SequenceOutput

VOCAB = 128
ADAPTERS: dict[str, dict[str, Any]] = {
    "r4": {"seed": 1, "rank": 4, "alpha": 8},
    "r8": {"seed": 2, "rank": 8, "alpha": 8, "targets": ALL_LINEAR, "scale": 0.5},
    "r16": {"seed": 3, "rank": 16, "alpha": 8, "use_rslora": True,
            "targets": ("o_proj", "up_proj")},
    "r256": {"seed": 4, "rank": 256, "alpha": 256,
             "targets": ("down_proj", "k_proj"), "layers": [1]},
    "tables": {"seed": 5, "rank": 8, "targets": ("q_proj", "embed_tokens", "lm_head")},
}  # fmt: skip
PROMPTS = [[(7 * i + 3 * k) % VOCAB for i in range(length)] for k, length in enumerate((1, 9, 21))]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path_factory.mktemp("base"))
    return model


@torch.inference_mode()
def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """The tokens that transformers gives after the prompt."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@dataclass(frozen=True)
class World:
    """The base model's folder, adapters by name, and what transformers and PEFT say."""

    folder: Path
    adapters: Mapping[str, Path]
    answer: Callable[[str, tuple[int, ...], int], list[int]]


@pytest.fixture(scope="module")
def world(base: Any, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("adapters")
    folder = Path(base.config._name_or_path or root / "base")
    base.save_pretrained(folder)
    adapters = {
        name: write_adapter(root / name, folder, **options) for name, options in ADAPTERS.items()
    }

    @cache
    def model(name: str) -> Any:
        if not name:
            return base
        merged = PeftModel.from_pretrained(copy.deepcopy(base), adapters[name]).merge_and_unload()
        return merged.eval()

    @cache
    def answer(name: str, prompt: tuple[int, ...], count: int) -> list[int]:
        return greedy(model(name), list(prompt), count)

    return World(folder, adapters, answer)


class Engine:
    """A core, and what its requests have given. identities: by adapter name."""

    def __init__(self, world: World, lora: LoRAConfig, **options: Any) -> None:
        settings = {"num_gpu_blocks_override": 128, "block_size": 4, "num_threads": 1} | options
        self.world = world
        self.core = EngineCore(
            EngineConfig(model=world.folder, lora=lora, max_model_len=64, **settings)
        )
        self.identities = {"": ""}
        self.tokens: dict[str, list[int]] = {}
        self.ends: dict[str, SequenceOutput] = {}

    def load(self, name: str, path: Path | None = None, **options: Any) -> dict[str, Any]:
        answer = self.core.load_adapter(name, str(path or self.world.adapters[name]), **options)
        self.core.finish_loads()
        result: dict[str, Any] = answer.result(0)
        self.identities[name] = f"{name}@{result['version']}"
        return result

    def add(self, key: str, prompt: list[int], adapter: str = "", count: int = 8) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
        self.tokens[key] = []
        self.core.add_request(
            EngineRequest(key, prompt, params, 0.0, adapter=self.identities[adapter])
        )

    def step(self) -> EngineStats:
        step = self.core.step()
        for output in step.outputs:
            self.tokens[output.request_id] += output.new_token_ids
            if output.finish_reason is not None:
                self.ends[output.request_id] = output
        self.core.scheduler.check()
        assert self.core._adapters is not None
        self.core._adapters.check()
        return step.stats

    def run(self) -> None:
        while self.core.has_work():
            self.step()

    def check_idle(self) -> None:
        """Nothing leaked: no block, no slot, no request of an adapter."""
        scheduler = self.core.scheduler
        assert scheduler.pool.num_free == scheduler.pool.num_blocks
        assert scheduler.turns.slots.held == {}
        assert all(each["num_requests"] == 0 for each in self.core.list_adapters())


@pytest.fixture
def new_engine(world: World) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []
    num_threads = torch.get_num_threads()

    def new(
        max_loras: int = 4,
        max_cpu_loras: int | None = None,
        max_lora_rank: int = 256,
        **options: Any,
    ) -> Engine:
        lora = LoRAConfig(
            max_loras=max_loras, max_cpu_loras=max_cpu_loras, max_lora_rank=max_lora_rank
        )
        engines.append(Engine(world, lora, **options))
        return engines[-1]

    yield new
    for engine in engines:
        engine.core.shutdown()
    torch.set_num_threads(num_threads)


NewEngine = Callable[..., Engine]


@pytest.mark.parametrize(
    "options",
    [
        {"max_loras": 5},
        {"max_loras": 2},
        {"max_loras": 5, "num_gpu_blocks_override": 17},
        {"max_loras": 3, "max_num_batched_tokens": 5, "max_num_seqs": 4},
        {"max_loras": 5, "enable_prefix_caching": False},
    ],
    ids=["all at once", "two slots", "preemption", "chunks", "no cache"],
)
def test_each_request_of_a_mixed_batch_equals_the_merged_model(
    world: World, new_engine: NewEngine, options: dict[str, Any]
) -> None:
    engine = new_engine(max_cpu_loras=5, **options)
    for name in ADAPTERS:
        engine.load(name)
    names = ["", *ADAPTERS]
    expected = {}
    for index, prompt in enumerate(PROMPTS):
        for name in names:
            engine.add(f"{name}/{index}", prompt, name)
            expected[f"{name}/{index}"] = world.answer(name, tuple(prompt), 8)

    engine.run()

    assert engine.tokens == expected
    assert (engine.core.scheduler.num_preemptions > 0) == ("num_gpu_blocks_override" in options)
    assert len({tuple(expected[f"{name}/1"]) for name in names}) == len(names), "they must differ"
    engine.check_idle()


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")  # PEFT's, on merging
def test_the_embedding_of_a_tied_model_is_changed_as_peft_trains_it(
    world: World, tmp_path: Path
) -> None:
    """Where it is looked up, and not where it is the output matrix: merging would do both."""
    torch.manual_seed(1)
    config = LlamaConfig.from_pretrained(world.folder, tie_word_embeddings=True)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "tied")
    path = write_adapter(
        tmp_path / "a", tmp_path / "tied", seed=1, targets=("q_proj", "embed_tokens"), scale=0.5
    )
    lora = LoRAConfig(max_lora_rank=8)
    engine = Engine(World(tmp_path / "tied", {"a": path}, world.answer), lora, num_threads=None)
    engine.load("a")
    engine.add("a", PROMPTS[1], "a")
    engine.run()
    engine.core.shutdown()

    adapted = PeftModel.from_pretrained(model, path).eval()
    assert engine.tokens["a"] == greedy(adapted, PROMPTS[1], 8)
    assert engine.tokens["a"] != greedy(adapted.merge_and_unload(), PROMPTS[1], 8)


def test_adapters_share_blocks_with_themselves_alone(world: World, new_engine: NewEngine) -> None:
    engine = new_engine()
    for name in ("r4", "r8"):
        engine.load(name)
    cached = {}
    for key, name in (("a", ""), ("b", "r4"), ("c", "r8"), ("d", "r4"), ("e", "")):
        engine.add(key, PROMPTS[2], name)
        engine.run()
        cached[key] = engine.ends[key].num_cached_tokens

    assert cached == {"a": 0, "b": 0, "c": 0, "d": 20, "e": 20}
    assert engine.tokens["d"] == engine.tokens["b"] == world.answer("r4", tuple(PROMPTS[2]), 8)


def test_an_adapter_evicted_in_mid_traffic_harms_nobody_and_can_come_back(
    world: World, new_engine: NewEngine
) -> None:
    engine = new_engine(max_loras=1, max_cpu_loras=2)
    engine.load("r4")
    engine.load("r8")
    engine.add("one", PROMPTS[1], "r8")
    engine.step()
    assert engine.load("r16")["evicted"] == ["r4"]
    engine.add("two", PROMPTS[1], "r16")
    engine.add("lost", PROMPTS[1], "r4")
    engine.run()
    assert engine.load("r4")["evicted"] == ["r8"]
    engine.add("three", PROMPTS[1], "r4")
    engine.run()

    lost = engine.ends["lost"]
    assert (lost.finish_reason, lost.error_kind) == ("error", "AdapterNotFoundError")
    assert "'r4' is not loaded" in lost.error
    assert engine.tokens["lost"] == []
    for key, name in (("one", "r8"), ("two", "r16"), ("three", "r4")):
        assert engine.tokens[key] == world.answer(name, tuple(PROMPTS[1]), 8)
    engine.check_idle()


def test_a_new_version_is_for_new_requests_and_shares_no_blocks_with_the_old(
    world: World, new_engine: NewEngine
) -> None:
    engine = new_engine(max_loras=2)
    old, new = world.adapters["r4"], world.adapters["r8"]
    first = engine.load("mine", old)
    engine.add("before", PROMPTS[2], "mine")
    engine.step()
    second = engine.load("mine", new, load_inplace=True)
    engine.add("after", PROMPTS[2], "mine")
    engine.step()
    assert engine.step().running_adapters == ["mine"]
    engine.run()

    assert first["version"] != second["version"]
    assert engine.tokens["before"] == world.answer("r4", tuple(PROMPTS[2]), 8)
    assert engine.tokens["after"] == world.answer("r8", tuple(PROMPTS[2]), 8)
    assert engine.ends["after"].num_cached_tokens == 0
    [listed] = engine.core.list_adapters()
    assert listed["version"] == second["version"]
    engine.check_idle()


def test_unloading_waits_for_its_requests_and_refuses_new_ones_at_once(
    world: World, new_engine: NewEngine
) -> None:
    engine = new_engine(max_loras=1)
    engine.load("r4")
    engine.add("running", PROMPTS[1], "r4")
    engine.step()
    engine.core.unload_adapter("r4")
    engine.add("late", PROMPTS[1], "r4")
    assert engine.core.list_adapters() == []
    with pytest.raises(UnavailableError, match="places"):
        engine.load("r8")
    engine.run()

    assert engine.ends["late"].error_kind == "AdapterNotFoundError"
    assert engine.tokens["running"] == world.answer("r4", tuple(PROMPTS[1]), 8)
    assert engine.load("r8")["evicted"] == []
    with pytest.raises(AdapterNotFoundError, match="loaded are: r8"):
        engine.core.unload_adapter("r4")


def test_steps_go_on_while_an_adapter_is_being_read(
    world: World, new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    engine = new_engine(max_loras=2, max_cpu_loras=2)
    engine.load("r4")
    reads = engine.core._adapters._loads  # type: ignore[union-attr]

    def held_up(name: str, path: Path) -> Any:
        assert gate.wait(60)
        return read(name, path)

    read = reads._read
    monkeypatch.setattr(reads, "_read", held_up)
    answer = engine.core.load_adapter("r8", str(world.adapters["r8"]))
    again = engine.core.load_adapter("r8", str(world.adapters["r8"]))
    engine.add("r", PROMPTS[1], "r4")
    engine.run()
    assert engine.tokens["r"] == world.answer("r4", tuple(PROMPTS[1]), 8)
    assert not answer.done()
    gate.set()
    engine.core.finish_loads()

    assert answer.result(0)["name"] == "r8"
    with pytest.raises(ValidationError, match="already been loaded"):
        again.result(0)


def test_loads_beside_running_requests_change_no_answer(
    world: World, new_engine: NewEngine
) -> None:
    """Requests arrive as soon as their adapter is there, whenever that is; versions are replaced
    by equal ones meanwhile.
    """
    engine = new_engine(max_loras=2, max_cpu_loras=8)
    answers = {
        name: engine.core.load_adapter(name, str(path)) for name, path in world.adapters.items()
    }
    engine.add("base", PROMPTS[2], count=40)
    while answers or engine.core.has_work():
        for name in [name for name, answer in answers.items() if answer.done()]:
            engine.identities[name] = f"{name}@{answers.pop(name).result()['version']}"
            engine.add(name, PROMPTS[1], name)
            again = engine.core.load_adapter(name, str(world.adapters[name]), load_inplace=True)
            again.add_done_callback(lambda answer: answer.result())
        engine.step()
    engine.core.finish_loads()

    expected = {name: world.answer(name, tuple(PROMPTS[1]), 8) for name in world.adapters}
    assert engine.tokens == expected | {"base": world.answer("", tuple(PROMPTS[2]), 40)}
    engine.check_idle()


def test_a_load_that_ends_wakes_the_engine_up_even_asleep(
    world: World, new_engine: NewEngine
) -> None:
    engine = new_engine()
    engine.core.sleep(0)
    answer = engine.core.load_adapter("r8", str(world.adapters["r8"]))
    engine.core._adapters._loads.wait()  # type: ignore[union-attr]

    assert engine.core.has_work()
    engine.core.step()
    assert answer.result(0)["rank"] == 8
    assert not engine.core.has_work()


@pytest.mark.parametrize("level", [0, 1, 2])
def test_slots_are_filled_again_after_sleep(
    world: World, new_engine: NewEngine, level: int
) -> None:
    engine = new_engine(enable_sleep_mode=True)
    engine.load("r4")
    engine.add("before", PROMPTS[1], "r4")
    engine.run()
    engine.add("kept", PROMPTS[1], "r4")
    engine.step()
    engine.core.sleep(level, "keep")
    [listed] = engine.core.list_adapters()
    assert listed["on_device"] == (level == 0)
    engine.core.wake_up()
    engine.run()

    expected = world.answer("r4", tuple(PROMPTS[1]), 8)
    assert engine.tokens == {"before": expected, "kept": expected}


def test_adapters_are_listed_with_what_they_take_and_who_uses_them(
    world: World, new_engine: NewEngine
) -> None:
    engine = new_engine(max_loras=1, max_cpu_loras=3)
    engine.load("r4", pinned=True)
    loaded = engine.load("r8")
    engine.add("x", PROMPTS[1], "r8")
    engine.add("y", PROMPTS[1], "r4")
    stats = engine.step()

    assert (stats.running_adapters, stats.waiting_adapters) == (["r8"], ["r4"])
    assert {key: loaded[key] for key in ("name", "rank", "evicted")} == {
        "name": "r8", "rank": 8, "evicted": [],
    }  # fmt: skip
    listed = engine.core.list_adapters()
    assert [each.pop("num_bytes") > 1000 for each in listed] == [True, True]
    assert [each.pop("version") == loaded["version"] for each in listed] == [True, False]
    assert listed == [
        {"name": "r8", "rank": 8, "pinned": False, "on_device": True, "num_requests": 1},
        {"name": "r4", "rank": 4, "pinned": True, "on_device": False, "num_requests": 1},
    ]
    assert engine.core.info.lora == LoRAInfo(1, 3, 256)
    engine.core.abort(["x", "y"])
    engine.check_idle()


def test_a_broken_adapter_is_refused_and_changes_nothing(
    world: World, new_engine: NewEngine, tmp_path: Path
) -> None:
    engine = new_engine(max_loras=1)
    engine.load("r4")
    broken = write_adapter(tmp_path, world.folder, seed=1, rank=320)
    for path, kind in ((broken, ValidationError), (tmp_path / "no", AdapterNotFoundError)):
        with pytest.raises(kind):
            engine.load("broken", path)
    with pytest.raises(ValidationError, match="already been loaded"):
        engine.load("r4")
    assert [each["name"] for each in engine.core.list_adapters()] == ["r4"]


def test_a_request_that_is_not_accepted_leaves_its_adapter_free(
    world: World, new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()
    engine.load("r4")

    def fail(request: EngineRequest) -> None:
        raise RuntimeError("no more memory")

    monkeypatch.setattr(engine.core.scheduler, "add", fail)
    with pytest.raises(RuntimeError):
        engine.add("r", PROMPTS[1], "r4")

    engine.check_idle()
    assert engine.core.sleep(0, "wait")


def test_an_engine_without_room_for_adapters_refuses_them(world: World) -> None:
    config = EngineConfig(model=world.folder, num_gpu_blocks_override=64, max_model_len=64)
    core = EngineCore(config)
    params = SamplingParams(max_tokens=1)
    core.add_request(EngineRequest("r", [1], params, 0.0, adapter="a@1"))
    [output] = core.step().outputs

    assert (output.finish_reason, output.error_kind) == ("error", "ValidationError")
    assert core.info.lora is None
    assert core.list_adapters() == []
    with pytest.raises(ValidationError, match="enable_lora"):
        core.load_adapter("a", str(world.adapters["r4"]))
    core.shutdown()


def test_five_hundred_adapters_through_eight_slots_leak_nothing(
    world: World, new_engine: NewEngine, tmp_path: Path
) -> None:
    """Random traffic with loads, evictions, unloads and aborts in the middle of it."""
    rng = random.Random(0)
    engine = new_engine(max_loras=8, max_cpu_loras=24, max_lora_rank=8, max_num_seqs=12)
    folders = [
        write_adapter(tmp_path / str(i), world.folder, seed=i, rank=rng.choice([1, 2]), layers=[0])
        for i in range(20)
    ]
    num_added = num_loads = num_refused = 0
    for number in range(500):
        name = f"adapter-{number}"
        answer = engine.core.load_adapter(name, str(folders[number % len(folders)]))
        engine.core.finish_loads()
        num_loads += 1
        if isinstance(answer.exception(0), UnavailableError):
            num_refused += 1
        else:
            engine.identities[name] = f"{name}@{answer.result(0)['version']}"
        known = [each["name"] for each in engine.core.list_adapters()]
        assert len(known) <= 24
        for _ in range(rng.randint(0, 3)):
            choice = rng.choice(["", *known])
            engine.add(str(num_added), [rng.randrange(VOCAB)] * 5, choice, rng.randint(1, 4))
            num_added += 1
        if rng.random() < 0.1:
            engine.core.unload_adapter(rng.choice(known))
        if rng.random() < 0.2 and num_added:
            engine.core.abort([str(rng.randrange(max(0, num_added - 8), num_added))])
        engine.step()
        assert len(engine.core.scheduler.turns.slots.held) <= 8
    engine.run()

    engine.check_idle()
    assert all(end.finish_reason == "length" for end in engine.ends.values())
    assert num_refused < num_loads / 2
