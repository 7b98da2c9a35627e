"""Poolers: each prompt's result is what it would be alone, whatever is pooled beside it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from octavo_protocol.errors import ConfigError
from octavo_protocol.pooling import PoolingParams
from octavo_runtime.layers.pooler import Pooler
from octavo_runtime.pooling import DenseHead, PoolingConfig, PoolPart, SequencePooling

HIDDEN = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
HEAD = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
BOUNDS = [(0, 4), (4, 5), (7, 12)]  # rows 5 and 6 belong to a prompt that is not over yet


def parts(task: str, **params: object) -> list[PoolPart]:
    settings = PoolingParams(task=task, **params)  # type: ignore[arg-type]
    return [PoolPart(a, b, settings, list(range(a, b))) for a, b in BOUNDS]


def classify(rows: Tensor) -> Tensor:
    return rows @ HEAD.T


def assert_all_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["CLS", "LAST", "MEAN"])
def test_one_vector_of_length_one_per_prompt(kind: SequencePooling) -> None:
    pooler = Pooler(PoolingConfig(tasks=("embed",), seq_pooling_type=kind))

    vectors = pooler(HIDDEN, parts("embed"))

    rows = {
        "CLS": [HIDDEN[a] for a, _ in BOUNDS],
        "LAST": [HIDDEN[b - 1] for _, b in BOUNDS],
        "MEAN": [HIDDEN[a:b].mean(0) for a, b in BOUNDS],
    }[kind]
    assert_all_close(vectors, [functional.normalize(row, dim=0) for row in rows])


def test_vectors_are_cut_before_they_get_length_one() -> None:
    pooler = Pooler(PoolingConfig(tasks=("embed",), seq_pooling_type="LAST"))

    vectors = pooler(HIDDEN, parts("embed", dimensions=2))

    assert_all_close(vectors, [functional.normalize(HIDDEN[b - 1, :2], dim=0) for _, b in BOUNDS])


def test_a_request_goes_before_the_models_activation() -> None:
    config = PoolingConfig(tasks=("embed",), seq_pooling_type="CLS", use_activation=False)
    plain, asked = parts("embed"), parts("embed", use_activation=True)

    vectors = Pooler(config)(HIDDEN, [plain[0], asked[1], plain[2]])

    expected = [HIDDEN[0], functional.normalize(HIDDEN[4], dim=0), HIDDEN[7]]
    assert_all_close(vectors, expected)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "identity"])
def test_classes_of_prompts_and_of_tokens(activation: str) -> None:
    config = PoolingConfig(
        tasks=("classify", "token_classify"),
        seq_pooling_type="CLS",
        activation=activation,  # type: ignore[arg-type]
        labels=("a", "b", "c"),
    )
    pooler = Pooler(config, classify)
    activate: dict[str, Callable[[Tensor], Tensor]] = {
        "softmax": lambda x: x.softmax(-1),
        "sigmoid": torch.sigmoid,
        "identity": lambda x: x,
    }

    by_prompt = pooler(HIDDEN, parts("classify"))
    by_token = pooler(HIDDEN, parts("token_classify"))
    raw = pooler(HIDDEN, parts("classify", use_activation=False))

    assert_all_close(by_prompt, [activate[activation](classify(HIDDEN[a])) for a, _ in BOUNDS])
    assert_all_close(by_token, [activate[activation](classify(HIDDEN[a:b])) for a, b in BOUNDS])
    assert_all_close(raw, [classify(HIDDEN[a]) for a, _ in BOUNDS])


def test_logits_are_shifted_and_scaled_before_the_activation() -> None:
    config = PoolingConfig(
        tasks=("classify",),
        seq_pooling_type="LAST",
        activation="sigmoid",
        labels=("a", "b", "c"),
        logit_mean=0.5,
        logit_sigma=2.0,
    )

    scores = Pooler(config, classify)(HIDDEN, parts("classify"))

    expected = [torch.sigmoid((classify(HIDDEN[b - 1]) - 0.5) / 2) for _, b in BOUNDS]
    assert_all_close(scores, expected)


def test_steps_are_the_tokens_with_the_tag_and_their_columns_the_chosen_ones() -> None:
    config = PoolingConfig(
        tasks=("token_classify",),
        seq_pooling_type="LAST",
        tok_pooling_type="STEP",
        step_tag_id=8,
        returned_token_ids=(2, 0),
        labels=("a", "b", "c"),
    )
    pooler = Pooler(config, classify)

    by_default = pooler(HIDDEN, parts("token_classify"))
    as_asked = pooler(HIDDEN, parts("token_classify", step_tag_id=1, returned_token_ids=[1]))

    assert [list(each.shape) for each in by_default] == [[0, 2], [0, 2], [1, 2]]
    torch.testing.assert_close(by_default[2], classify(HIDDEN[8:9])[:, [2, 0]])
    assert [list(each.shape) for each in as_asked] == [[1, 1], [0, 1], [0, 1]]
    torch.testing.assert_close(as_asked[0], classify(HIDDEN[1:2])[:, [1]])


def test_tokens_vectors_have_length_one_each() -> None:
    pooler = Pooler(PoolingConfig(tasks=("token_embed",), seq_pooling_type="MEAN"))

    vectors = pooler(HIDDEN, parts("token_embed"))

    assert_all_close(vectors, [functional.normalize(HIDDEN[a:b], dim=-1) for a, b in BOUNDS])


def test_bf16_rows_are_pooled_in_fp32() -> None:
    pooler = Pooler(PoolingConfig(tasks=("embed",), seq_pooling_type="MEAN", use_activation=False))
    rows = HIDDEN.bfloat16()

    vectors = pooler(rows, parts("embed"))

    assert_all_close(vectors, [rows[a:b].float().mean(0) for a, b in BOUNDS])


@pytest.fixture
def dense(tmp_path: Path) -> tuple[DenseHead, torch.nn.Linear]:
    linear = torch.nn.Linear(6, 4)
    weights = {f"linear.{name}": value.detach() for name, value in linear.state_dict().items()}
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    return DenseHead(tmp_path, 6, 4, True, "Tanh"), linear


@torch.no_grad()
def test_dense_heads_come_before_the_cut(dense: tuple[DenseHead, torch.nn.Linear]) -> None:
    head, linear = dense
    config = PoolingConfig(tasks=("embed",), seq_pooling_type="CLS", dense=(head,))

    vectors = Pooler(config)(HIDDEN, parts("embed", dimensions=3))

    expected = [functional.normalize(linear(HIDDEN[a]).tanh()[:3], dim=0) for a, _ in BOUNDS]
    assert_all_close(vectors, expected)


def test_a_dense_head_that_does_not_fit_is_refused(
    dense: tuple[DenseHead, torch.nn.Linear], tmp_path: Path
) -> None:
    wrong = DenseHead(tmp_path, 6, 5, True)
    with pytest.raises(ConfigError, match=r"linear.weight has shape \[4, 6\]"):
        Pooler(PoolingConfig(tasks=("embed",), seq_pooling_type="CLS", dense=(wrong,)))

    missing = DenseHead(tmp_path / "nowhere", 6, 4, True)
    with pytest.raises(ConfigError, match=r"cannot give linear\.weight"):
        Pooler(PoolingConfig(tasks=("embed",), seq_pooling_type="CLS", dense=(missing,)))
