"""PEFT's adapter files: what is read from them, and what is refused with which words."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.fakes.lora_adapters import ALL_LINEAR, module_shapes, write_adapter

from octavo_protocol.errors import OctavoError, ValidationError
from octavo_runtime.lora.peft_files import AdapterLimits, read_adapter

MODEL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
}
TARGETS = module_shapes(MODEL, (*ALL_LINEAR, "embed_tokens", "lm_head"))
LIMITS = AdapterLimits(TARGETS, max_lora_rank=64, dtype=torch.float32)
Q0 = "model.layers.0.self_attn.q_proj"


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "adapter_model.safetensors"))


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("rank", [1, 8, 64])
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), (*ALL_LINEAR, "embed_tokens")])
def test_matrices_and_scaling_are_as_in_the_files(
    tmp_path: Path, rank: int, targets: tuple[str, ...]
) -> None:
    folder = write_adapter(tmp_path, MODEL, seed=1, rank=rank, alpha=24, targets=targets)
    stored = tensors_of(folder)

    adapter = read_adapter("mine", folder, LIMITS)

    assert (adapter.name, adapter.rank) == ("mine", rank)
    assert set(adapter.modules) == set(module_shapes(MODEL, targets))
    for module, matrices in adapter.modules.items():
        kind, end = ("lora_embedding_", "") if "embed" in module else ("lora_", ".weight")
        prefix = f"base_model.model.{module}.{kind}"
        assert torch.equal(matrices.a, stored[f"{prefix}A{end}"])
        assert torch.allclose(matrices.b, stored[f"{prefix}B{end}"] * 24 / rank)
        assert matrices.a.is_contiguous()
        assert matrices.b.is_contiguous()


def test_rank_stabilised_scaling_divides_by_the_root(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, MODEL, seed=1, rank=4, alpha=8, use_rslora=True)
    stored = tensors_of(folder)[f"base_model.model.{Q0}.lora_B.weight"]

    adapter = read_adapter("a", folder, LIMITS)

    assert torch.allclose(adapter.modules[Q0].b, stored * 8 / math.sqrt(4))


def test_patterns_give_modules_their_own_rank_and_alpha(tmp_path: Path) -> None:
    folder = write_adapter(
        tmp_path, MODEL, seed=1, rank=4, alpha=4, rank_pattern={Q0: 2},
        alpha_pattern={r"layers\.0\..*_proj": 12.0, "q_proj": 99},
    )  # fmt: skip
    stored = tensors_of(folder)

    modules = read_adapter("a", folder, LIMITS).modules

    scalings = {
        Q0: 12 / 2,
        "model.layers.0.self_attn.v_proj": 12 / 4,
        "model.layers.1.self_attn.q_proj": 99 / 4,
        "model.layers.1.self_attn.v_proj": 1.0,
    }
    for module, scaling in scalings.items():
        expected = stored[f"base_model.model.{module}.lora_B.weight"] * scaling
        assert torch.allclose(modules[module].b, expected)


def test_some_layers_an_adapter_name_in_the_keys_and_a_target_expression(tmp_path: Path) -> None:
    folder = write_adapter(
        tmp_path, MODEL, seed=1, layers=[1], key_suffix=".default",
        targets=("q_proj", "embed_tokens"), target_modules=r".*\.(q_proj|embed_tokens)",
    )  # fmt: skip

    adapter = read_adapter("a", folder, LIMITS)

    assert set(adapter.modules) == {"model.embed_tokens", "model.layers.1.self_attn.q_proj"}


def test_the_base_model_s_own_embedding_beside_an_adapter_is_ignored(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, MODEL, seed=1, targets=("embed_tokens", "lm_head"))
    extra = {
        "base_model.model.model.embed_tokens.base_layer.weight": torch.zeros(40, 16),
        "base_model.model.lm_head.base_layer.weight": torch.zeros(40, 16),
    }
    rewrite(folder, tensors_of(folder) | extra)

    assert set(read_adapter("a", folder, LIMITS).modules) == {"model.embed_tokens", "lm_head"}


def test_a_resized_embedding_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, MODEL, seed=1, targets=("embed_tokens",))
    extra = {"base_model.model.model.embed_tokens.base_layer.weight": torch.zeros(48, 16)}
    rewrite(folder, tensors_of(folder) | extra)

    with pytest.raises(ValidationError, match=r"embed_tokens\.base_layer"):
        read_adapter("a", folder, LIMITS)


def test_matrices_are_of_the_engine_s_dtype_and_scaled_before_they_are_rounded(
    tmp_path: Path,
) -> None:
    folder = write_adapter(tmp_path, MODEL, seed=1, rank=3, alpha=7, dtype=torch.bfloat16)
    stored = tensors_of(folder)[f"base_model.model.{Q0}.lora_B.weight"]

    adapter = read_adapter("a", folder, AdapterLimits(TARGETS, 64, torch.bfloat16))

    assert adapter.modules[Q0].b.dtype == torch.bfloat16
    assert torch.equal(adapter.modules[Q0].b, (stored.float() * (7 / 3)).bfloat16())


def test_the_version_names_the_contents_and_nothing_else(tmp_path: Path) -> None:
    first = write_adapter(tmp_path / "x", MODEL, seed=1)
    same = write_adapter(tmp_path / "y", MODEL, seed=1)
    weights = write_adapter(tmp_path / "z", MODEL, seed=2)
    config = write_adapter(tmp_path / "w", MODEL, seed=1, alpha=17)

    versions = [read_adapter("a", folder, LIMITS).version for folder in (first, weights, config)]

    assert read_adapter("b", same, LIMITS).version == versions[0]
    assert len(set(versions)) == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias='all'"),
        ({"bias": "lora_only"}, "bias='none'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1]}, "rows of the embedding"),
        ({"init_lora_weights": "pissa_niter_16"}, "path_initial_model_for_weight_conversion"),
        ({"r": 0}, "must give r as an integer"),
        ({"r": "8"}, "got '8'"),
        ({"r": 65}, "rank 65 .* up to 64: raise --max-lora-rank"),
        ({"r": 16}, r"shape \[8, 16\].* ask for \[16, 16\]"),
        ({"lora_alpha": None}, "lora_alpha as a number"),
        ({"rank_pattern": {"q_proj": 80}}, "rank 80"),
        ({"rank_pattern": [1]}, "rank_pattern that is no object"),
        ({"alpha_pattern": {"(": 1}}, "no regular expression"),
        ({"alpha_pattern": {"(a+)+b": 1}}, "name the modules plainly"),
        ({"rank_pattern": {".*.*.*.*x": 1}}, "more than 3 times"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_refused_with_what_helps(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    folder = write_adapter(tmp_path, MODEL, seed=1)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(ValidationError, match=message) as caught:
        read_adapter("a", folder, LIMITS)
    assert caught.value.parameter == "lora_path"


def broken_tensors(kind: str) -> dict[str, torch.Tensor]:
    a, b = torch.ones(8, 16), torch.ones(16, 8)
    prefix = f"base_model.model.{Q0}"
    pair = {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
    changes: dict[str, dict[str, torch.Tensor]] = {
        "no matrices": {},
        "only A": {f"{prefix}.lora_A.weight": a},
        "NaN": pair | {f"{prefix}.lora_B.weight": b * math.nan},
        "infinite": pair | {f"{prefix}.lora_A.weight": a * math.inf},
        "another model's shape": pair | {f"{prefix}.lora_A.weight": torch.ones(8, 20)},
        "one dimension": pair | {f"{prefix}.lora_A.weight": torch.ones(8)},
        "two adapters": pair | {f"{prefix}.lora_A.other.weight": a.clone()},
        "a layer too many": {
            key.replace("layers.0", "layers.7"): value for key, value in pair.items()
        },
        "DoRA": pair | {f"{prefix}.lora_magnitude_vector": torch.ones(16)},
        "something else": pair | {"base_model.model.score.weight": torch.ones(2, 16)},
    }
    return changes[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no matrices", "holds no lora_A"),
        ("only A", "lacks its lora_B"),
        ("NaN", "not numbers"),
        ("infinite", "infinite"),
        ("another model's shape", r"\[8, 20\].*another model"),
        ("one dimension", r"\[8\]"),
        ("two adapters", "twice"),
        ("a layer too many", r"changes model\.layers\.7\.self_attn\.q_proj, .* 2 layers"),
        ("DoRA", "DoRA"),
        ("something else", r"score\.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, kind: str, message: str
) -> None:
    folder = write_adapter(tmp_path, MODEL, seed=1)
    rewrite(folder, broken_tensors(kind))
    with pytest.raises(ValidationError, match=message):
        read_adapter("a", folder, LIMITS)


def test_modules_that_the_engine_does_not_open_to_adapters_are_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, MODEL, seed=1, targets=("q_proj", "o_proj"))
    targets = {name: shape for name, shape in TARGETS.items() if name.endswith("q_proj")}
    with pytest.raises(ValidationError, match=r"o_proj.*may change q_proj of"):
        read_adapter("a", folder, AdapterLimits(targets, 64, torch.float32))


def stored(header: str) -> bytes:
    """A file with 8 bytes of data."""
    return len(header).to_bytes(8, "little") + header.encode() + bytes(8)


def entry(dtype: str, shape: str, offsets: str) -> str:
    return f'{{"x": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}}}'


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("adapter_config.json", b"{"),
        ("adapter_config.json", b"[]"),
        ("adapter_config.json", b"\xff\xfe"),
        ("adapter_model.safetensors", b""),
        ("adapter_model.safetensors", b"\xff" * 100),
        ("adapter_model.safetensors", stored("[]")),
        ("adapter_model.safetensors", stored('{"x": 1}')),
        ("adapter_model.safetensors", stored('{"x": {"dtype": "F32", "shape": [1]}}')),
        ("adapter_model.safetensors", stored(entry("I64", "[1]", "[0, 8]"))),
        ("adapter_model.safetensors", stored(entry("F32", "[-1, -2]", "[0, 8]"))),
        ("adapter_model.safetensors", stored(entry("F32", "[2.0]", "[0, 8]"))),
        ("adapter_model.safetensors", stored(entry("F32", "[2]", "[-8, 0]"))),
        ("adapter_model.safetensors", stored(entry("F32", "[3]", "[0, 8]"))),
        ("adapter_model.safetensors", stored(entry("F32", "[4]", "[0, 16]"))),
        ("adapter_model.safetensors", None),
    ],
)
def test_damaged_files_are_refused_by_name(
    tmp_path: Path, file: str, content: bytes | None
) -> None:
    path = write_adapter(tmp_path, MODEL, seed=1) / file
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ValidationError, match=re.escape(file)):
        read_adapter("a", tmp_path, LIMITS)


def test_tensors_are_found_wherever_they_begin(tmp_path: Path) -> None:
    """The library aligns the header, others need not."""
    folder = write_adapter(tmp_path, MODEL, seed=1)
    expected = read_adapter("a", folder, LIMITS).modules
    path = folder / "adapter_model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    path.write_bytes(
        (length + 1).to_bytes(8, "little") + raw[8 : 8 + length] + b" " + raw[8 + length :]
    )

    modules = read_adapter("a", folder, LIMITS).modules

    assert all(torch.equal(modules[name].b, expected[name].b) for name in expected)


def test_a_file_far_too_large_is_not_taken_in(tmp_path: Path) -> None:
    path = write_adapter(tmp_path, MODEL, seed=1) / "adapter_config.json"
    path.write_text(json.dumps({"x": "y" * (1 << 20)}))
    with pytest.raises(ValidationError, match="larger than any adapter"):
        read_adapter("a", tmp_path, LIMITS)


def test_missing_files_are_not_found_and_a_pickle_is_refused(tmp_path: Path) -> None:
    errors: list[OctavoError] = []
    (tmp_path / "empty").mkdir()
    folder = write_adapter(tmp_path / "pickle", MODEL, seed=1)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    for name in ("nowhere", "empty", "pickle"):
        with pytest.raises(OctavoError) as caught:
            read_adapter("a", tmp_path / name, LIMITS)
        errors.append(caught.value)

    kinds = [type(error).__name__ for error in errors]
    assert kinds == ["AdapterNotFoundError", "AdapterNotFoundError", "ValidationError"]
    assert "no folder" in errors[0].message
    assert "adapter_config.json" in errors[1].message
    assert "safe_serialization=True" in errors[2].message
