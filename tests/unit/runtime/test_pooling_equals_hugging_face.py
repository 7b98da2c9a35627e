"""Decoders that pool equal transformers', however their prompts are batched and cut into chunks."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from numpy.typing import NDArray
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    Qwen3Model,
)

from octavo_protocol.errors import ConfigError
from octavo_protocol.pooling import PoolingParams
from octavo_runtime.config import EngineConfig, PoolerConfig
from octavo_runtime.engine.pooling_engine import PoolingEngine

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
CLASSES: dict[str, tuple[type, type]] = {
    "LlamaModel": (LlamaConfig, LlamaModel),
    "LlamaForCausalLM": (LlamaConfig, LlamaForCausalLM),
    "LlamaForSequenceClassification": (LlamaConfig, LlamaForSequenceClassification),
    "Qwen3Model": (Qwen3Config, Qwen3Model),
    "Qwen3ForSequenceClassification": (Qwen3Config, Qwen3ForSequenceClassification),
}
# Ways to run: all at once, in small steps, in chunks of an odd size, with blocks for one prompt.
RUNS: list[dict[str, Any]] = [
    {},
    {"max_num_batched_tokens": 48, "max_num_seqs": 3},
    {"long_prefill_token_threshold": 7},
    {"num_gpu_blocks_override": 16, "max_num_batched_tokens": 48, "max_num_seqs": 48},
    {"enable_prefix_caching": False},
]
SHARED = np.random.default_rng(7).integers(1, 96, 64).tolist()
PROMPTS = [
    *(np.random.default_rng(n).integers(1, 96, n).tolist() for n in (1, 2, 17, 100, 33, 256, 16)),
    [*SHARED, 5],
    [*SHARED, 6, 7],
    SHARED,
]
Result = NDArray[np.float32]
Build = Callable[..., tuple[Path, PreTrainedModel]]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    made: dict[str, tuple[Path, PreTrainedModel]] = {}

    def build(architecture: str) -> tuple[Path, PreTrainedModel]:
        if architecture not in made:
            torch.manual_seed(3)
            config_class, model_class = CLASSES[architecture]
            extra = {"num_labels": 3} if "Classification" in architecture else {}
            head_dim = {"head_dim": 8} if "Qwen3" in architecture else {}
            config = config_class(**SIZES, **extra, **head_dim)
            model = model_class(config).eval()
            folder = tmp_path_factory.mktemp(architecture)
            model.save_pretrained(folder)
            made[architecture] = (folder, model)
        return made[architecture]

    return build


@pytest.fixture
def pool() -> Iterator[Callable[..., list[Result]]]:
    """Runs the prompts, all queued at once, and checks the blocks after every step."""
    engines = []

    def pool(folder: Path, params: PoolingParams, **options: Any) -> list[Result]:
        engine = PoolingEngine(
            EngineConfig(model=folder, dtype="float32", **{"num_gpu_blocks_override": 64} | options)
        )
        engines.append(engine)
        for index, prompt in enumerate(PROMPTS):
            engine.add_request(str(index), prompt, params)
        outputs: dict[int, Result] = {}
        while engine.has_unfinished_requests():
            outputs |= {int(output.request_id): output.outputs.data for output in engine.step()}
            engine.core.scheduler.check()
        assert not engine.core.has_work()
        return [outputs[index] for index in range(len(PROMPTS))]

    yield pool
    for engine in engines:
        engine.shutdown()


@torch.no_grad()
def hidden_states(model: PreTrainedModel, prompt: list[int]) -> torch.Tensor:
    body = getattr(model, "model", model)
    return body(torch.tensor([prompt])).last_hidden_state[0]  # type: ignore[no-any-return]


def assert_equal(got: list[Result], expected: list[torch.Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=1e-5)


@pytest.mark.parametrize("options", RUNS)
@pytest.mark.parametrize("architecture", ["LlamaModel", "LlamaForCausalLM", "Qwen3Model"])
def test_an_embedding_is_the_normalised_state_of_the_last_token(
    build: Build, pool: Callable[..., list[Result]], architecture: str, options: dict[str, Any]
) -> None:
    folder, model = build(architecture)

    got = pool(folder, PoolingParams(), convert="embed", **options)

    last = [hidden_states(model, prompt)[-1] for prompt in PROMPTS]
    assert_equal(got, [torch.nn.functional.normalize(state, dim=-1) for state in last])


@pytest.mark.parametrize("options", RUNS)
@pytest.mark.parametrize("kind", ["CLS", "MEAN"])
def test_other_pooling_types_see_the_whole_prompt(
    build: Build, pool: Callable[..., list[Result]], kind: str, options: dict[str, Any]
) -> None:
    folder, model = build("LlamaModel")
    config = PoolerConfig(pooling_type=kind)

    got = pool(folder, PoolingParams(use_activation=False), pooler_config=config, **options)

    states = [hidden_states(model, prompt) for prompt in PROMPTS]
    assert_equal(got, [each[0] if kind == "CLS" else each.mean(0) for each in states])


@pytest.mark.parametrize("options", RUNS)
def test_token_embeddings_are_of_every_token(
    build: Build, pool: Callable[..., list[Result]], options: dict[str, Any]
) -> None:
    folder, model = build("LlamaModel")

    got = pool(folder, PoolingParams(task="token_embed", use_activation=False), **options)

    assert_equal(got, [hidden_states(model, prompt) for prompt in PROMPTS])


@pytest.mark.parametrize("options", RUNS)
@pytest.mark.parametrize(
    "architecture", ["LlamaForSequenceClassification", "Qwen3ForSequenceClassification"]
)
def test_classes_are_those_of_the_score_head(
    build: Build, pool: Callable[..., list[Result]], architecture: str, options: dict[str, Any]
) -> None:
    folder, model = build(architecture)

    got = pool(folder, PoolingParams(), **options)

    with torch.no_grad():
        logits = [model(torch.tensor([prompt])).logits[0] for prompt in PROMPTS]
    assert_equal(got, [each.softmax(-1) for each in logits])


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_token_may_be_the_score(
    pool: Callable[..., list[Result]], tmp_path: Path, is_tied: bool
) -> None:
    torch.manual_seed(4)
    config = LlamaConfig(**SIZES, tie_word_embeddings=is_tied)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    words = tokenizers.models.WordLevel({"[PAD]": 0, "no": 7, "yes": 9}, unk_token="[PAD]")
    tokenizers.Tokenizer(words).save(str(tmp_path / "tokenizer.json"))
    overrides = {
        "architectures": ["LlamaForSequenceClassification"],
        "classifier_from_token": ["no", "yes"],
    }

    both = pool(tmp_path, PoolingParams(), hf_overrides=overrides)
    score = pool(
        tmp_path, PoolingParams(), hf_overrides=overrides | {"is_original_qwen3_reranker": True}
    )

    with torch.no_grad():
        logits = [model(torch.tensor([prompt])).logits[0, -1, [7, 9]] for prompt in PROMPTS]
    expected = [each.softmax(-1) for each in logits]
    assert_equal(both, expected)
    assert_equal(score, [each[1:] for each in expected])


def test_a_score_of_unknown_tokens_is_refused(
    build: Build, pool: Callable[..., list[Result]], tmp_path: Path
) -> None:
    folder, model = build("LlamaForCausalLM")
    model.save_pretrained(tmp_path)
    overrides = {
        "architectures": ["LlamaForSequenceClassification"],
        "classifier_from_token": ["no", "maybe"],
    }

    with pytest.raises(ConfigError, match=r"classifier_from_token needs .*tokenizer.json"):
        pool(folder, PoolingParams(), hf_overrides=overrides)
    words = tokenizers.models.WordLevel({"[PAD]": 0, "no": 7}, unk_token="[PAD]")
    tokenizers.Tokenizer(words).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="'maybe' is no token of this model"):
        pool(tmp_path, PoolingParams(), hf_overrides=overrides)
