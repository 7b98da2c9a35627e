"""Adapters on a GPU: answers are those of the CPU's engine, in fp32, with graphs and without."""

from pathlib import Path
from typing import Any

import pytest
from tests.fakes.lora_adapters import ALL_LINEAR, write_adapter
from tests.gpu.conftest import PROMPT, NewEngine, Replays, TinyModel
from tests.unit.runtime.gpu.test_device_path import adapted_answers

from octavo_runtime.config import LoRAConfig

pytestmark = pytest.mark.gpu

_ADAPTERS: list[dict[str, Any]] = [
    {"rank": 8, "targets": ALL_LINEAR},
    {"rank": 64},
    {"rank": 16, "targets": ("q_proj", "embed_tokens", "lm_head")},
    {"rank": 1, "targets": ("down_proj",), "layers": [1]},
    {"rank": 33, "targets": ("o_proj", "gate_proj")},
]


@pytest.mark.parametrize(
    "options",
    [{}, {"enforce_eager": True}, {"max_num_batched_tokens": 16}],
    ids=["graphs", "eager", "chunked"],
)
def test_answers_with_adapters_are_those_of_the_cpu(
    tiny: TinyModel,
    new_engine: NewEngine,
    replays: Replays,
    tmp_path: Path,
    options: dict[str, Any],
) -> None:
    folders = [
        write_adapter(tmp_path / str(seed), tiny.folder, seed=seed, **each)
        for seed, each in enumerate(_ADAPTERS)
    ]
    lora = LoRAConfig(max_loras=3, max_lora_rank=64, max_cpu_loras=8)
    cores = [new_engine(device=device, lora=lora, **options).core for device in ("cpu", "cuda")]

    expected, actual = (adapted_answers(core, folders, PROMPT, 14) for core in cores)

    assert actual == expected
    assert (replays.count > 0) == ("enforce_eager" not in options)
    assert cores[1].scheduler.pool.num_free == cores[1].scheduler.pool.num_blocks
