"""The catalogue's model, once fetched: the weights and token ids that everything else relies on."""

import hashlib
from pathlib import Path

import pytest

from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.models.catalogue import SMOLLM2

pytestmark = pytest.mark.model


def test_weights_have_the_pinned_checksum(smollm2: Path) -> None:
    with (smollm2 / "model.safetensors").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SMOLLM2.weights_sha256


def test_digits_are_apart_and_special_tokens_whole(smollm2: Path) -> None:
    tokenizer = Tokenizer.from_folder(smollm2)

    assert tokenizer.decode(tokenizer.encode("Año 2024: naïve 🙂\n")) == "Año 2024: naïve 🙂\n"
    assert len(tokenizer.encode("2024")) == 4
    assert tokenizer.encode("<|im_end|>") == [tokenizer.eos_token_id] == [2]


def test_folder_is_complete(smollm2: Path) -> None:
    assert {path.name for path in smollm2.iterdir()} == {
        "LICENSE",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
