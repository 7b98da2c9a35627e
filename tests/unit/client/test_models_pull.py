"""`octavo models pull --to`: what programs read of it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.model_servers import FileServer, serving
from tests.unit.models.packed import MODEL, tar

from octavo.cli.main import main
from octavo.cli.pull_progress import PullProgress


@pytest.fixture
def server() -> Iterator[FileServer]:
    state = FileServer({"/m.tar": tar(MODEL)})
    with serving(state):
        yield state


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["models", "pull", *words])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pull_writes_its_progress_and_last_words(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (log := tmp_path / "termination-log").touch()
    told = tmp_path / "new" / "progress"
    total = len(server.files["/m.tar"])

    code = run(
        *(f"{server.url}/m.tar", "--to", str(tmp_path / "m")),
        *("--progress-file", str(told), "--termination-log", str(log)),
    )

    first, *_, whole, last = lines(told)
    assert code == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "m")
    assert (first["done"], first["total"]) == (0, total)
    assert (whole["done"], whole["total"]) == (total, total)
    assert last["result"] == "complete"
    assert log.read_text() == last["message"] == f"{tmp_path / 'm'} is complete: 4 files, 0.6 MB"


def test_failed_pull_says_why_in_its_last_words(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (log := tmp_path / "termination-log").touch()
    told = tmp_path / "progress"
    source = f"{server.url}/none.tar"

    code = run(
        *(source, "--to", str(tmp_path / "m"), "--progress-file", str(told)),
        *("--termination-log", str(log)),
    )

    assert code == 2
    assert log.read_text() == f"{source} does not exist"
    assert (lines(told)[-1]["result"], lines(told)[-1]["message"]) == ("failed", log.read_text())
    assert capsys.readouterr().err.strip().endswith(f"octavo: {source} does not exist")


def test_no_termination_log_is_made(server: FileServer, tmp_path: Path) -> None:
    log = tmp_path / "termination-log"

    assert run(f"{server.url}/m.tar", "--to", str(tmp_path / "m"), f"--termination-log={log}") == 0
    assert not log.exists()


def test_pickles_do_not_enter_the_cache(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("smollm2", "--allow-pickle") == 2
    assert "--allow-pickle goes with --to" in capsys.readouterr().err


def test_progress_file_that_cannot_be_written_is_said_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("smollm2", "--progress-file", str(tmp_path)) == 2
    assert f"cannot write {tmp_path}" in capsys.readouterr().err


def test_progress_is_written_once_a_second_and_at_the_end_of_a_stage(tmp_path: Path) -> None:
    now = iter([10.0, 10.5, 11.0, 11.1, 11.2, 11.3])
    path = tmp_path / "progress"
    with PullProgress(path, tmp_path / "no", lambda *_: None, clock=lambda: next(now)) as progress:
        for done in (0, 1, 2, 3, 4):
            progress("downloading", done, 4)
        progress("converting", 0, None)

    assert [(each["time"], each["done"]) for each in lines(path)] == [
        (10.0, 0),
        (11.0, 2),
        (11.2, 4),
        (11.3, 0),
    ]
