"""What the documents tell people to type exists, and links lead somewhere."""

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pydantic import BaseModel
from tests.fakes.fake_llm import FakeLLM

from octavo.cli.command import FlexibleCommand
from octavo.cli.main import app
from octavo_protocol.openai import ChatCompletionRequest, CompletionRequest
from octavo_router.pooling import POOLING
from octavo_runtime.engine.messages import LoRAInfo
from octavo_runtime.server.app import create_app
from octavo_runtime.server.metrics import ServerMetrics
from octavo_runtime.server.options import ApiOptions
from octavo_runtime.server.reasoning_parsers import REASONING_PARSERS
from octavo_runtime.server.state import ServerState
from octavo_runtime.server.tool_parsers import TOOL_PARSERS

REPOSITORY = Path(__file__).parents[3]
DOCUMENTS = sorted(
    [
        *REPOSITORY.glob("*.md"),
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / "examples").rglob("*.*"),
    ]
)
_COMMAND = re.compile(r"(?:^ {4}|^# .*:  |`)(?:\.venv/bin/)?(octavo(?: [^`#\n]*)?)", re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
_MODULE = re.compile(r"python -m (benchmarks[\w.]*|octavo[\w.]*)")
_METRIC = re.compile(r"`vllm:(\w+)`")
_FLAG = re.compile(r"`(--[a-z][a-z_-]+[a-z])")
_ROUTE = re.compile(r"(?<=[`/, ])(/[a-z0-9_/{}]+)")
_PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
_POOLING = REPOSITORY / "docs" / "pooling.md"
_HTTP_API = REPOSITORY / "docs" / "http-api.md"
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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_modules_that_are_run_exist(document: Path) -> None:
    for module in set(_MODULE.findall(document.read_text(encoding="utf-8"))):
        assert importlib.util.find_spec(module) is not None, module


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_imports_what_there_is(document: Path) -> None:
    for code in _PYTHON.findall(document.read_text(encoding="utf-8")):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("octavo"):
                imported = importlib.import_module(node.module or "")
                assert all(hasattr(imported, each.name) for each in node.names), code


def test_flags_that_are_named_are_known() -> None:
    """By the command that they are for, or as flags of vLLM with an answer."""
    group: Any = typer.main.get_command(app)
    known = {"--help", "--debug", "--config", *_long_flags(_all_commands(group))}
    for name in (
        "cli",
        "http-api",
        "from-vllm",
        "gpu",
        "router",
        "benchmarks",
        "getting-started",
        "lora",
        "pooling",
        "tenancy",
    ):
        text = (REPOSITORY / "docs" / f"{name}.md").read_text(encoding="utf-8")
        unknown = {flag.replace("_", "-") for flag in _FLAG.findall(text)} - known
        own = {"--batches", "--vocabulary", "--threads", "--repeats", "--dry"}  # of benchmarks
        assert unknown <= (own if name == "benchmarks" else set()), name


def test_the_page_of_the_api_has_every_route_field_and_parser() -> None:
    text = _HTTP_API.read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", text))
    for body in (ChatCompletionRequest, CompletionRequest):
        assert _field_names(body) <= words
    assert {*TOOL_PARSERS, *REASONING_PARSERS} <= words
    pooling = set(re.findall(r"\w+", _POOLING.read_text(encoding="utf-8")))
    for kind in POOLING.values():
        assert _field_names(kind) <= pooling
    shown = {route for line in text.splitlines() for route in _ROUTE.findall(line)}
    assert _routes_of_a_replica() <= shown


def test_metrics_that_are_named_exist() -> None:
    llm = FakeLLM(lora=LoRAInfo(max_loras=1, max_cpu_loras=1, max_lora_rank=16))
    options = ApiOptions(metrics_names="vllm", show_old_metrics=True)
    metrics = ServerMetrics(llm, options)  # type: ignore[arg-type]
    there = set(re.findall(r"# TYPE vllm:(\w+)", metrics.render().decode()))
    named = set(_METRIC.findall(_HTTP_API.read_text(encoding="utf-8")))
    assert named == {name.removesuffix("_total") for name in there if "_created" not in name}


def _all_commands(command: Any) -> Iterable[Any]:
    for each in getattr(command, "commands", {}).values():
        yield each
        yield from _all_commands(each)


def _long_flags(commands: Iterable[Any]) -> set[str]:
    known = set()
    for command in commands:
        for option in command.params:
            known |= {*option.opts, *option.secondary_opts}
        if isinstance(command, FlexibleCommand):
            known |= set(command.grammar().names)
    return known


def _field_names(body: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in body.model_fields.items()}


def _routes_of_a_replica() -> set[str]:
    options = ApiOptions(dev_mode=True, enable_tokenizer_info_endpoint=True)
    llm: Any = FakeLLM()
    state = ServerState(llm, ("m",), 1, ServerMetrics(llm, options), options)
    paths = {str(getattr(route, "path", "")) for route in create_app(state).routes}
    documentation = {path for path in paths if path.startswith(("/docs", "/redoc", "/openapi"))}
    return {path.replace(":path", "") for path in paths - documentation}
