"""Reads an adapter from PEFT's files and checks it against the model.

A folder holds adapter_config.json and adapter_model.safetensors. The tensors' names:

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight     [rank, in_features]
    base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight     [out_features, rank]
    base_model.model.model.embed_tokens.lora_embedding_A               [rank, vocab_size]
    base_model.model.model.embed_tokens.lora_embedding_B               [hidden_size, rank]
    base_model.model.model.embed_tokens.base_layer.weight              the base model's own: ignored

An adapter name may follow A and B (`.lora_A.default.weight`), and adapters of a model's body alone
have names without its prefix (`base_model.model.layers.0…`). Files are read whole before anything
is looked at, so that one that is replaced or cut off meanwhile does no harm.
"""

import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from octavo_protocol.errors import AdapterNotFoundError, ValidationError
from octavo_runtime.config import LORA_RANKS
from octavo_runtime.lora.adapter import LoRAAdapter, LoRAMatrices
from octavo_runtime.lora.peft_config import CONFIG_FILE, PeftConfig
from octavo_runtime.lora.stored_tensors import stored_tensors

WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLE_FILE = "adapter_model.bin"
_MAX_CONFIG_BYTES = 1 << 20
_HEADER_BYTES = 64 << 20
_VERSION_CHARS = 16
_BODY = "model"

_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\.lora_(?:embedding_)?(?P<letter>[AB])"
    r"(?:\.[^.]+)?(?:\.weight)?$"
)
_BASE_LAYER = re.compile(r"(?:base_model\.model\.)?(?P<module>.+?)(?:\.base_layer)?\.weight$")


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """What an adapter of this engine may be.

    targets: (out_features, in_features) of the matrices that it may change, by their checkpoint
    names without `.weight`. dtype: of its matrices in memory. pin_memory: a GPU copies them.
    """

    targets: Mapping[str, tuple[int, int]]
    max_lora_rank: int
    dtype: torch.dtype
    pin_memory: bool = False


def read_adapter(name: str, folder: Path, limits: AdapterLimits) -> LoRAAdapter:
    """The adapter in `folder`; its version names the files' contents.

    Raises `AdapterNotFoundError` where files are missing, and `ValidationError`, with what is wrong
    and what helps, where they are damaged, of another kind, or do not fit the model.
    """
    config_bytes = _read(folder, CONFIG_FILE, _MAX_CONFIG_BYTES)
    config = PeftConfig.parse(bytes(config_bytes.numpy()))
    weights = _read(folder, WEIGHTS_FILE, _max_bytes(limits))
    pairs = _pairs(_tensors(weights), limits)
    for module, pair in pairs.items():
        _check_pair(module, pair, config, limits)
    modules = _placed(pairs, config, limits)
    rank = max(len(each.a) for each in modules.values())
    return LoRAAdapter(name, _version(config_bytes, weights), rank, modules)


def _read(folder: Path, file: str, max_bytes: int) -> Tensor:
    """The file's bytes: [num_bytes] uint8."""
    path = folder / file
    try:
        with path.open("rb") as opened:
            num_bytes = os.fstat(opened.fileno()).st_size
            if num_bytes > max_bytes:
                raise _invalid(
                    f"{path} is larger than any adapter that fits this engine ({max_bytes} "
                    "bytes): give the folder of a LoRA adapter of this model"
                )
            content = torch.empty(num_bytes, dtype=torch.uint8)
            return content[: opened.readinto(content.numpy().data)]
    except FileNotFoundError as error:
        raise _missing(folder, file) from error
    except OSError as error:
        raise AdapterNotFoundError(
            f"{path} cannot be read: {error.strerror or error}", parameter="lora_path"
        ) from error


def _version(*contents: Tensor) -> str:
    digests = [hashlib.sha256(content.numpy().data).digest() for content in contents]
    return hashlib.sha256(b"".join(digests)).hexdigest()[:_VERSION_CHARS]


def _missing(folder: Path, file: str) -> Exception:
    if not folder.is_dir():
        return AdapterNotFoundError(f"there is no folder {folder}", parameter="lora_path")
    if file == WEIGHTS_FILE and (folder / _PICKLE_FILE).exists():
        return _invalid(
            f"{folder} has {_PICKLE_FILE} and no {WEIGHTS_FILE}: the former is a pickle, which can "
            "run code when it is read; save the adapter with safe_serialization=True"
        )
    return AdapterNotFoundError(
        f"{folder} has no {file}: it must hold {CONFIG_FILE} and {WEIGHTS_FILE}, as PEFT's "
        "save_pretrained writes them",
        parameter="lora_path",
    )


def _max_bytes(limits: AdapterLimits) -> int:
    """Of a file of the largest rank that any engine takes, in fp32, with the base model's embedding
    and head beside.
    """
    sizes = limits.targets.values()
    low_rank = sum((rows + columns) * LORA_RANKS[-1] for rows, columns in sizes)
    largest = max((rows * columns for rows, columns in sizes), default=0)
    return 4 * (low_rank + 2 * largest) + _HEADER_BYTES


def _tensors(weights: Tensor) -> dict[str, Tensor]:
    try:
        return stored_tensors(weights)
    except ValueError as error:
        raise _invalid(
            f"{WEIGHTS_FILE} is damaged or no safetensors file: {error}. Fetch it again"
        ) from error


def _pairs(tensors: Mapping[str, Tensor], limits: AdapterLimits) -> dict[str, dict[str, Tensor]]:
    """A and B by module."""
    pairs: dict[str, dict[str, Tensor]] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        if "lora_magnitude_vector" in key:
            raise _invalid("the adapter uses DoRA, which cannot be served: merge it into the model")
        found = _KEY.match(key)
        module = None if found is None else _target(found["module"], limits)
        if found is not None and module is not None:
            letters = pairs.setdefault(module, {})
            if found["letter"] in letters:
                raise _invalid(f"{key} is there twice, under two adapter names: save one of them")
            letters[found["letter"]] = tensor
        elif not _is_of_base_model(key, tensor, limits):
            unknown.append(key if found is None else found["module"])
    if unknown:
        raise _unknown(sorted(set(unknown)), limits)
    if not pairs:
        raise _invalid(f"{WEIGHTS_FILE} holds no lora_A and lora_B matrices")
    return pairs


def _target(module: str, limits: AdapterLimits) -> str | None:
    """The matrix that is meant; adapters of a model's body alone leave `model.` out."""
    names = (module, f"{_BODY}.{module}")
    return next((name for name in names if name in limits.targets), None)


def _is_of_base_model(key: str, tensor: Tensor, limits: AdapterLimits) -> bool:
    """PEFT saves the base model's embedding and output head beside adapters that change them."""
    found = _BASE_LAYER.match(key)
    module = None if found is None else _target(found["module"], limits)
    shape = None if module is None else limits.targets[module]
    return shape is not None and tuple(tensor.shape) in (shape, shape[::-1])


def _unknown(names: list[str], limits: AdapterLimits) -> ValidationError:
    known = sorted({target.rpartition(".")[2] for target in limits.targets})
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return _invalid(
        f"the adapter changes {', '.join(names[:3])}{more}, which cannot be changed here: it may "
        f"change {', '.join(known)} of this model's {_num_layers(limits)} layers"
    )


def _num_layers(limits: AdapterLimits) -> int:
    numbers = re.findall(r"\.layers\.(\d+)\.", " ".join(limits.targets))
    return 1 + max(map(int, numbers), default=-1)


def _placed(
    pairs: Mapping[str, Mapping[str, Tensor]], config: PeftConfig, limits: AdapterLimits
) -> dict[str, LoRAMatrices]:
    """A and B in the engine's dtype, the scaling in B; all in one piece of memory, as pinning each
    of hundreds of matrices would hold up the GPU's other work.
    """
    sizes = [pair[letter].numel() for pair in pairs.values() for letter in "AB"]
    memory = torch.empty(sum(sizes), dtype=limits.dtype, pin_memory=limits.pin_memory)
    pieces = iter(memory.split(sizes))  # type: ignore[no-untyped-call]
    modules = {}
    for module, pair in pairs.items():
        a = next(pieces).view(pair["A"].shape).copy_(pair["A"])
        scaled = pair["B"].to(torch.float32) * config.scaling_of(module)
        b = next(pieces).view(pair["B"].shape).copy_(scaled)
        if not (_is_finite(a) and _is_finite(b)):
            raise _invalid(
                f"{module} has values that are infinite or not numbers in "
                f"{str(limits.dtype).removeprefix('torch.')}: the training has diverged, or "
                "--lora-dtype is too small for it"
            )
        modules[module] = LoRAMatrices(a, b)
    return modules


def _check_pair(
    module: str, pair: Mapping[str, Tensor], config: PeftConfig, limits: AdapterLimits
) -> None:
    if len(pair) != 2:
        lost = "B" if "A" in pair else "A"
        raise _invalid(f"{module} lacks its lora_{lost} matrix; fetch the adapter again")
    rank = config.rank_of(module)
    if rank > limits.max_lora_rank:
        raise _invalid(
            f"the adapter has rank {rank} at {module}; this engine takes up to "
            f"{limits.max_lora_rank}: raise --max-lora-rank"
        )
    out_features, in_features = limits.targets[module]
    _check_shape(f"{module} lora_A", pair["A"], (rank, in_features))
    _check_shape(f"{module} lora_B", pair["B"], (out_features, rank))


def _is_finite(matrix: Tensor) -> bool:
    low, high = matrix.aminmax()  # many times faster than isfinite; NaN is passed on
    return math.isfinite(low) and math.isfinite(high)


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, int]) -> None:
    if tuple(tensor.shape) != expected:
        raise _invalid(
            f"{name} has shape {list(tensor.shape)}; config and model ask for {list(expected)}: "
            "the adapter was made for another model, or its files do not belong together"
        )


def _invalid(message: str) -> ValidationError:
    return ValidationError(message, parameter="lora_path")
