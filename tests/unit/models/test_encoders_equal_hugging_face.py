"""Encoders of BERT's kin give transformers' hidden states and logits, however packed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.models.encoder_checkpoints import (
    VOCAB,
    encoder_batch,
    load_encoder,
    write_checkpoint,
)

from octavo_protocol.errors import ConfigError
from octavo_runtime.model_config import ModelConfig

MODELS = (
    *("BertModel", "DistilBertModel", "ModernBertModel"),
    *("RobertaModel", "XLMRobertaModel"),
)
CLASSIFIERS = tuple(
    f"{family}For{level}Classification"
    for family in ("Bert", "DistilBert", "ModernBert", "Roberta", "XLMRoberta")
    for level in ("Sequence", "Token")
)
# Token 1 is padding to RoBERTa, which transformers would count as such.
prompt = st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=64)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """By architecture: transformers' model and ours, of one checkpoint."""
    pairs = {}
    for architecture in MODELS:
        folder = tmp_path_factory.mktemp(architecture)
        pairs[architecture] = (write_checkpoint(folder, architecture), load_encoder(folder))
    return pairs


@pytest.mark.parametrize("architecture", MODELS)
@settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(prompts=st.lists(prompt, min_size=1, max_size=6))
@torch.inference_mode()
def test_hidden_states_of_ragged_batches(
    models: dict[str, tuple[Any, Any]], architecture: str, prompts: list[list[int]]
) -> None:
    theirs, ours = models[architecture]
    hidden = ours(encoder_batch(prompts)).split([len(each) for each in prompts])
    for tokens, actual in zip(prompts, hidden, strict=True):
        expected = theirs(torch.tensor([tokens])).last_hidden_state[0]
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_parts_of_a_pair_are_told_apart(models: dict[str, tuple[Any, Any]]) -> None:
    theirs, ours = models["BertModel"]
    tokens, types = [[5, 6, 7, 8], [9, 10]], [[0, 0, 1, 1], [0, 1]]

    hidden = ours(encoder_batch(tokens, types)).split([4, 2])

    for ids, part, actual in zip(tokens, types, hidden, strict=True):
        expected = theirs(torch.tensor([ids]), token_type_ids=torch.tensor([part]))
        torch.testing.assert_close(actual, expected.last_hidden_state[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", CLASSIFIERS)
@torch.inference_mode()
def test_logits_of_classifiers(tmp_path: Path, architecture: str) -> None:
    theirs = write_checkpoint(tmp_path, architecture, num_labels=3)
    ours = load_encoder(tmp_path, num_labels=3)
    tokens = [7, 100, 3, 54, 2]

    hidden = ours(encoder_batch([[9, 8], tokens]))[2:]

    by_token = architecture.endswith("TokenClassification")
    actual = ours.head(hidden if by_token else hidden[:1])
    expected = theirs(torch.tensor([tokens])).logits.view(-1, 3)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_body_of_a_classifier_alone_is_read_too(tmp_path: Path) -> None:
    theirs = write_checkpoint(tmp_path, "BertForSequenceClassification", num_labels=2)

    hidden = load_encoder(tmp_path)(encoder_batch([[4, 5, 6]]))

    expected = theirs.bert(torch.tensor([[4, 5, 6]])).last_hidden_state[0]
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_bf16_stays_near_fp32(tmp_path: Path) -> None:
    theirs = write_checkpoint(tmp_path, "BertModel")
    tokens = list(range(2, 60))

    hidden = load_encoder(tmp_path, dtype=torch.bfloat16)(encoder_batch([tokens]))

    expected = theirs(torch.tensor([tokens])).last_hidden_state[0]
    similarity = torch.cosine_similarity(hidden.float(), expected, dim=-1)
    assert hidden.dtype == torch.bfloat16
    assert similarity.min() > 0.999


def test_positions_of_roberta_leave_room_for_padding(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "RobertaModel")

    config = ModelConfig.from_folder(tmp_path)

    assert config.max_position_embeddings == 64
    assert config.encoder is not None
    assert config.encoder.position_offset == 2


@torch.inference_mode()
def test_layers_and_thetas_of_an_older_modernbert_file(tmp_path: Path) -> None:
    """As files on the hub have them, which transformers still reads."""
    theirs = write_checkpoint(tmp_path, "ModernBertModel")
    path = tmp_path / "config.json"
    older = json.loads(path.read_text())
    del older["layer_types"], older["rope_parameters"]
    older |= {"global_attn_every_n_layers": 2, "global_rope_theta": 500.0, "local_rope_theta": 50.0}
    path.write_text(json.dumps(older))
    theirs = type(theirs).from_pretrained(tmp_path).eval()
    tokens = list(range(2, 42))

    hidden = load_encoder(tmp_path)(encoder_batch([tokens]))

    expected = theirs(torch.tensor([tokens])).last_hidden_state[0]
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "overrides", "message"),
    [
        ("DistilBertModel", {"activation": "relu"}, "hidden_act 'relu' is not supported"),
        ("ModernBertModel", {"classifier_pooling": "max"}, "one of cls, mean, it is 'max'"),
        (
            "ModernBertModel",
            {"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1.0}}},
            "rope_type 'yarn' is not supported",
        ),
    ],
)
def test_variants_of_other_families_are_named(
    tmp_path: Path, architecture: str, overrides: dict[str, Any], message: str
) -> None:
    write_checkpoint(tmp_path, architecture)

    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_folder(tmp_path, overrides)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("position_embedding_type", "relative_key"),
        ("hidden_act", "swish"),
        ("is_decoder", True),
    ],
)
def test_variants_that_are_not_supported_are_named(tmp_path: Path, key: str, value: Any) -> None:
    write_checkpoint(tmp_path, "BertModel")

    with pytest.raises(ConfigError, match=f"{key} .*{value}"):
        ModelConfig.from_folder(tmp_path, {key: value})
