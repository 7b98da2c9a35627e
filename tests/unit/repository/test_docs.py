"""What the documents tell people to type exists, and links lead somewhere."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from octavo.cli.main import app

REPOSITORY = Path(__file__).parents[3]
DOCUMENTS = sorted(
    [
        *REPOSITORY.glob("*.md"),
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / "examples").iterdir(),
    ]
)
_COMMAND = re.compile(r"(?:^ {4}|^# .*:  |`)(?:\.venv/bin/)?(octavo(?: [^`#\n]*)?)", re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
_MAKE = re.compile(r"(?:^ {4}|`)make ([a-z-]+)", re.MULTILINE)


def commands() -> list[tuple[str, str]]:
    found = []
    for document in DOCUMENTS:
        for command in _COMMAND.findall(document.read_text(encoding="utf-8")):
            found.append((document.name, command.strip()))
    return found


def test_documents_show_commands() -> None:
    assert len(commands()) > 20


@pytest.mark.parametrize(("document", "command"), commands())
def test_command_parses(document: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `octavo …` line is accepted by the real parser, without running it."""
    monkeypatch.chdir(REPOSITORY)
    words = shlex.split(command.replace("…", ""))[1:]
    if not words or words[0] == "--debug" or words[0].isupper():  # "octavo COMMAND --help"
        return
    group: Any = typer.main.get_command(app)
    context = group.make_context("octavo", list(words), resilient_parsing=True)
    while hasattr(group, "commands"):
        name = words.pop(0)
        assert name in group.commands, f"{document}: no command {name!r}"
        group = group.commands[name]
        if not words:
            return
    group.make_context(name, list(words), parent=context)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    for target in _LINK.findall(document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = set(_MAKE.findall(document.read_text(encoding="utf-8")))
    assert named <= targets
