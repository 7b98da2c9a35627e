"""The Dockerfile against the project: no container engine runs in these tests."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.cluster import images
from tests.unit.charts.chart import render

from octavo.cli.main import app

REPOSITORY = Path(__file__).parents[3]
IMAGES = ("runtime", "router", "operator")
EXTRAS: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions of each stage, in order, with those of the stages it is built from."""
    text = (REPOSITORY / "Dockerfile").read_text()
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    made: dict[str, list[tuple[str, str]]] = {"": []}
    name = ""
    for line in filter(None, lines):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            made[name] = list(made.get(base, []))
        else:
            made[name].append((instruction, rest.strip()))
    return made


def last(stage: str, instruction: str) -> str:
    return [rest for name, rest in stages()[stage] if name == instruction][-1]


@pytest.mark.parametrize("image", IMAGES)
def test_each_image_installs_its_extra_and_runs_its_command(image: str) -> None:
    build = last(image, "COPY").split()[0].removeprefix("--from=")
    [extra] = re.findall(r"\.\[([\w,]+)\]", last(build, "RUN"))
    commands: Any = typer.main.get_command(app)

    assert set(extra.split(",")) <= set(EXTRAS)
    assert image in extra.split(",")
    assert last(image, "ENTRYPOINT") == '["octavo"]'
    command = "serve" if image == "runtime" else image
    assert last(image, "CMD").startswith(f'["{command}"')
    assert command in commands.commands


def test_images_read_models_and_files_of_batches_in_buckets() -> None:
    assert "'.[runtime,sources,otel]'" in last("build-runtime", "RUN")
    assert "'.[router,sources,otel]'" in last("build-router", "RUN")


def test_images_are_run_by_the_user_of_the_chart_s_pods() -> None:
    for image in IMAGES:
        user = last(image, "USER")
        context = render().pod("router")["spec"]["securityContext"]
        assert user == f"{context['runAsUser']}:{context['runAsGroup']}" == images.USER


def test_images_listen_where_the_chart_s_probes_ask() -> None:
    for image in ("router", "operator"):
        [port] = render().container(image)["ports"]
        assert last(image, "EXPOSE") == str(port["containerPort"])


def test_the_cluster_tests_images_have_the_same_environment() -> None:
    own = {"PATH", "PYTHONPATH", "LD_LIBRARY_PATH"}
    given = dict(word.split("=", 1) for word in shlex.split(last("runtime", "ENV")))
    assert given.items() - {("PATH", given["PATH"])} == {
        (name, value) for name, value in images.ENVIRONMENT.items() if name not in own
    }


def test_what_the_build_copies_is_let_through_to_it() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    needed = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "client", "kernels"}
    needed |= {"operator", "protocol", "router", "runtime"}
    assert allowed == needed
