"""The shape of the repository: source roots, extras, pins, and what must not import torch."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[3]
PARTS = ("client", "kernels", "operator", "protocol", "router", "runtime")
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def names(requirements: list[str]) -> set[str]:
    """Distribution names of requirement strings, normalised."""
    found = (re.match(r"[A-Za-z0-9._-]+", requirement) for requirement in requirements)
    return {re.sub(r"[-_.]+", "-", match.group()).lower() for match in found if match}


@pytest.mark.parametrize("part", PARTS)
def test_part_folder_is_no_package_and_its_package_is_typed(part: str) -> None:
    folder = REPOSITORY / part
    packages = [path.parent for path in folder.glob("*/__init__.py")]

    assert not (folder / "__init__.py").exists()
    assert len(packages) == 1
    assert (packages[0] / "py.typed").exists()


def test_the_same_parts_are_listed_everywhere() -> None:
    tool = PROJECT["tool"]
    wheel = tool["hatch"]["build"]["targets"]["wheel"]["packages"]

    assert tuple(tool["hatch"]["build"]["dev-mode-dirs"]) == PARTS
    assert tuple(path.split("/")[0] for path in wheel) == PARTS
    assert tuple(tool["ruff"]["src"]) == PARTS
    assert tuple(tool["mypy"]["mypy_path"]) == PARTS
    assert tuple(tool["pyright"]["extraPaths"]) == PARTS
    assert tuple(tool["coverage"]["run"]["source"]) == PARTS
    assert sorted(path.split("/")[1] for path in wheel) == sorted(
        tool["importlinter"]["root_packages"]
    )


def test_extras_refer_to_extras_that_exist() -> None:
    extras: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
    for requirements in extras.values():
        for requirement in requirements:
            if match := re.fullmatch(r"octavo\[([a-z,]+)\]", requirement):
                assert set(match.group(1).split(",")) <= set(extras)


def test_light_images_do_not_ask_for_torch() -> None:
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    heavy = {"torch", "transformers", "triton", "numba"}

    for light in (project["dependencies"], extras["router"], extras["operator"]):
        assert not names(light) & (heavy | {"octavo"})


def test_every_direct_dependency_is_pinned_and_torch_first() -> None:
    project = PROJECT["project"]
    extras = project["optional-dependencies"].values()
    wanted = names(project["dependencies"]).union(*map(names, extras)) - {"octavo"}
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]

    assert wanted <= names(pins)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", pin) for pin in pins)
    assert names(pins[:1]) == {"torch"}


@pytest.mark.parametrize(
    "modules",
    [
        "octavo_protocol.errors octavo_protocol.tokenizer octavo_protocol.openai",
        "octavo_router octavo_router.server",
        "octavo_operator",
        "octavo octavo.cli.main",
    ],
)
def test_light_parts_import_without_torch(modules: str) -> None:
    """With torch and its companions blocked, as in an image that does not have them."""
    script = (
        "import importlib, sys\n"
        "for name in ('torch', 'transformers', 'triton', 'numba'): sys.modules[name] = None\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *modules.split()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", ["operator", "kernels"])
def test_part_folders_hide_no_module_when_python_starts_here(module: str) -> None:
    script = f"import importlib.util as u; s = u.find_spec({module!r}); print(s and s.origin)"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert str(REPOSITORY / module / "__init__.py") not in result.stdout
