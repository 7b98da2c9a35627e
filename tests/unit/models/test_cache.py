"""A model is in the cache whole or not at all, whatever interrupts its making."""

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.cache import build_once


def write_slowly(folder: Path) -> None:
    (folder / "half").write_text("1")
    time.sleep(0.3)
    (folder / "whole").write_text(str(os.getpid()))


def build_and_report(root: Path, results: "multiprocessing.Queue[str]") -> None:
    folder = build_once(root, "m", write_slowly, needed_bytes=1)
    results.put((folder / "whole").read_text())


def sleep_in_build(folder: Path) -> None:
    (folder / "half").write_text("1")
    time.sleep(60)


def build_forever(root: Path) -> None:
    build_once(root, "m", sleep_in_build, needed_bytes=1)


def test_of_two_processes_one_builds_and_both_get_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=build_and_report, args=(tmp_path, results)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    builders = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()

    assert len(builders) == 1


def test_killed_build_leaves_nothing_that_counts(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=build_forever, args=(tmp_path,))
    process.start()
    partial = tmp_path / "models" / ".partial-m" / "half"
    deadline = time.monotonic() + 60
    while not partial.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()

    assert not (tmp_path / "models" / "m").exists()
    folder = build_once(tmp_path, "m", write_slowly, needed_bytes=1)
    assert sorted(path.name for path in folder.iterdir()) == ["half", "whole"]
    assert [path.name for path in folder.parent.iterdir()] == ["m"]


def test_failed_build_is_cleaned_up(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("1")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        build_once(tmp_path, "m", fail, needed_bytes=1)

    assert list((tmp_path / "models").iterdir()) == []


def test_too_little_space_is_said_before_anything_is_built(tmp_path: Path) -> None:
    def never(folder: Path) -> None:
        raise AssertionError("must not start")

    with pytest.raises(ConfigError, match=r"the disk is full: .* takes 1000000000000 MB"):
        build_once(tmp_path, "m", never, needed_bytes=10**18)


@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "cannot write to the cache folder")],
)
def test_what_the_file_system_refuses_is_explained(tmp_path: Path, code: int, message: str) -> None:
    def refuse(folder: Path) -> None:
        raise OSError(code, os.strerror(code))

    with pytest.raises(ConfigError, match=message):
        build_once(tmp_path, "m", refuse, needed_bytes=1)

    assert list((tmp_path / "models").iterdir()) == []
