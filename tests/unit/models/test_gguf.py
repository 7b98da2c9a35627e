"""GGUF files become Hugging Face folders with the same weights and the same token ids."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file
from tests.unit.models.tiny_gguf import HEAD_DIM, TOKENS, TinyGguf

from octavo_protocol.errors import ConfigError
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.models.gguf import _Llama3Rope, _to_bfloat16, convert_gguf


def convert(tiny: TinyGguf, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    convert_gguf(tiny.write(tmp_path / "tiny.gguf"), folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (Kind.Q8_0, torch.bfloat16),
        (Kind.Q4_1, torch.bfloat16),
        (Kind.F16, torch.float16),
        (Kind.F32, torch.float32),
    ],
)
def test_every_tensor_is_the_dequantised_one(
    tmp_path: Path, kind: Kind, dtype: torch.dtype
) -> None:
    tiny = TinyGguf(quantised=kind)

    tensors = load_file(convert(tiny, tmp_path) / "model.safetensors")

    assert tensors.keys() == tiny.weights.keys()
    for name, values in tiny.weights.items():
        assert torch.equal(tensors[name], torch.from_numpy(values).to(dtype)), name


def test_tensor_larger_than_a_piece_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo_runtime.models.gguf._ROWS_PER_PIECE", 3)
    tiny = TinyGguf()

    tensors = load_file(convert(tiny, tmp_path) / "model.safetensors")

    for name, values in tiny.weights.items():
        assert torch.equal(tensors[name], torch.from_numpy(values).to(torch.bfloat16)), name


def test_bfloat16_rounds_as_torch_does() -> None:
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3.4e38, 1.00390625, 1.01171875]
    random = (
        np.random.default_rng(1).standard_normal(10_000)
        * 10.0 ** np.arange(-30, 30).repeat(167)[:10_000]
    )
    values = np.concatenate([special, random]).astype(np.float32)

    ours = torch.frombuffer(bytearray(_to_bfloat16(values)), dtype=torch.bfloat16)

    assert torch.equal(
        ours.nan_to_num(7.0), torch.from_numpy(values).to(torch.bfloat16).nan_to_num(7.0)
    )


def test_config_says_what_the_metadata_says(tmp_path: Path) -> None:
    folder = convert(TinyGguf(tied=False), tmp_path)

    config = json.loads((folder / "config.json").read_text())

    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["hidden_size"], config["intermediate_size"]) == (32, 64)
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (4, 2)
    assert config["head_dim"] == HEAD_DIM
    assert config["rms_norm_eps"] == 1e-5
    assert config["tie_word_embeddings"] is False
    assert config["vocab_size"] == len(TOKENS)
    assert config["rope_scaling"] is None
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, 1)


def test_tokenizer_splits_digits_merges_and_keeps_special_tokens(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(convert(TinyGguf(), tmp_path))

    token_ids = tokenizer.encode("<bos>ab12 c<tool>")

    assert [TOKENS[i] for i in token_ids] == ["<bos>", "ab", "1", "2", "Ġc", "<tool>"]
    assert tokenizer.decode(token_ids) == "ab12 c<tool>"  # <tool> is no special token
    assert tokenizer.eos_token_id == 1
    assert tokenizer.apply_chat_template([{"content": "hi"}]) == "hi"


def test_llama3_tokenizer_begins_with_bos(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(convert(TinyGguf(pre="llama-bpe"), tmp_path))

    assert [TOKENS[i] for i in tokenizer.encode("ab12")] == ["<bos>", "ab", "1", "2"]


def test_llama3_rope_factors_become_rope_scaling(tmp_path: Path) -> None:
    factors = _Llama3Rope().factors(500000.0, HEAD_DIM, 32.0)
    folder = convert(TinyGguf(rope_factors=factors.astype(np.float32)), tmp_path)

    assert json.loads((folder / "config.json").read_text())["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


@pytest.mark.parametrize(
    ("tiny", "message"),
    [
        (TinyGguf(architecture="mamba"), "'mamba'; GGUF files are supported for llama"),
        (TinyGguf(pre="tekken"), "pre-tokenizer 'tekken'; supported are gpt-2, llama-bpe, smollm"),
        (TinyGguf(tokenizer_model="llama"), "tokenizer of kind 'llama'"),
        (TinyGguf(extra_tensor="blk.0.attn_q.bias"), "blk.0.attn_q.bias"),
        (TinyGguf(rope_factors=np.full(4, 3, np.float32)), "not Llama 3's"),
    ],
    ids=["architecture", "pre-tokenizer", "vocabulary", "tensor", "rope"],
)
def test_what_is_not_supported_is_named(tmp_path: Path, tiny: TinyGguf, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        convert(tiny, tmp_path)


@pytest.mark.parametrize("content", [b"", b"GGU", b"not a model at all" * 10])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not a readable GGUF file"):
        convert_gguf(path, tmp_path)


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    path = TinyGguf().write(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(ConfigError, match="not a readable GGUF file"):
        convert_gguf(path, folder)
