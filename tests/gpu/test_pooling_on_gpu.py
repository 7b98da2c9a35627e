"""Pooling on a GPU: tensors are those of the CPU engine, in fp32, however steps overlap."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.unit.models.encoder_checkpoints import VOCAB, write_checkpoint
from transformers import LlamaConfig, LlamaModel

from octavo_protocol.pooling import PoolingParams
from octavo_runtime.config import EngineConfig, PoolerConfig
from octavo_runtime.engine.pooling_engine import PoolingEngine

pytestmark = pytest.mark.gpu

LENGTHS = (1, 2, 3, 7, 16, 17, 31, 48, 63, 64)
KINDS: list[tuple[str, str, dict[str, Any]]] = [
    ("encoder", "embed", {"max_num_batched_tokens": 80, "max_num_seqs": 8}),
    ("encoder", "token_embed", {}),
    ("encoder-MEAN", "embed", {}),
    ("decoder", "embed", {}),
    ("decoder", "embed", {"max_num_batched_tokens": 24, "max_num_seqs": 4}),
    ("decoder", "token_embed", {"max_num_batched_tokens": 24, "max_num_seqs": 4}),
    ("decoder-MEAN", "embed", {"max_num_batched_tokens": 24, "max_num_seqs": 4}),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    encoder = tmp_path_factory.mktemp("bert")
    write_checkpoint(encoder, "BertModel", hidden_size=128)
    decoder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=192,
        intermediate_size=224,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=64,
    )
    LlamaModel(config).save_pretrained(decoder)
    return {"encoder": encoder, "decoder": decoder}


@pytest.fixture
def engines() -> Iterator[list[PoolingEngine]]:
    made: list[PoolingEngine] = []
    yield made
    for engine in made:
        engine.shutdown()


def pool(engine: PoolingEngine, params: PoolingParams) -> list[NDArray[np.float32]]:
    for n in LENGTHS:
        prompt = np.random.default_rng(n).integers(5, VOCAB, n).tolist()
        engine.add_request(str(n), prompt, params)
    outputs: dict[str, NDArray[np.float32]] = {}
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output.outputs.data for output in engine.step()}
        engine.core.scheduler.check()
    assert not engine.core.has_work()
    return [outputs[str(n)] for n in LENGTHS]


@pytest.mark.parametrize(("kind", "task", "options"), KINDS)
def test_tensors_are_those_of_the_cpu(
    folders: dict[str, Path],
    engines: list[PoolingEngine],
    kind: str,
    task: str,
    options: dict[str, Any],
) -> None:
    name, _, pooling_type = kind.partition("-")
    settings: dict[str, Any] = {
        "model": folders[name],
        "dtype": "float32",
        "max_model_len": 64,
        "pooler_config": PoolerConfig(seq_pooling_type=pooling_type or None),
        "enable_sleep_mode": True,
    }
    if name == "decoder":
        settings["num_gpu_blocks_override"] = 12
    results = []
    for device in ("cpu", "cuda"):
        engines.append(PoolingEngine(EngineConfig(**(settings | options | {"device": device}))))
        results.append(pool(engines[-1], PoolingParams(task=task)))

    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    weights = (folders[name] / "model.safetensors").stat().st_size
    for level in (1, 2):
        awake = torch.cuda.memory_allocated()
        engines[1].sleep(level)
        assert awake - torch.cuda.memory_allocated() > 0.9 * weights
        engines[1].wake_up()
        for one, other in zip(results[1], pool(engines[1], PoolingParams(task=task)), strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5)


def test_memory_for_the_cache_is_what_weights_and_steps_leave(
    folders: dict[str, Path], engines: list[PoolingEngine]
) -> None:
    config = EngineConfig(model=folders["decoder"], device="cuda", gpu_memory_utilization=0.5)
    engines.append(PoolingEngine(config))

    assert engines[0].info.num_blocks == 256 * 4  # all that its sequences could use
    assert len(pool(engines[0], PoolingParams())) == len(LENGTHS)
