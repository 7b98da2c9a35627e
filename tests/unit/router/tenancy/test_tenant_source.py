"""A changed file counts; a wrong one does not."""

import logging
from pathlib import Path

import pytest
from tests.unit.router.tenancy.test_tenants_file import SECRET, write

from octavo_router.tenancy.source import TenantSource


def names(source: TenantSource) -> list[str]:
    return [each.name for each in source.directory.tenants]


def test_an_edit_counts_and_a_mistake_keeps_the_last_good_version(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, f"secret: {SECRET}\ntenants: [{{name: a}}]\n")
    source = TenantSource(path)
    write(tmp_path, f"secret: {SECRET}\ntenants: [{{name: b}}]\n")
    source.refresh()
    assert (names(source), source.num_reloads, source.is_stale) == (["b"], 1, False)

    write(tmp_path, f"secret: {SECRET}\ntenants: [{{nam: c}}]\n")
    with caplog.at_level(logging.ERROR):
        source.refresh()
        source.refresh()
    assert (names(source), source.num_failures, source.is_stale) == (["b"], 1, True)
    [record] = caplog.records
    assert "line 2: tenants.0.nam: there is no such field" in record.getMessage()

    path.unlink()
    source.refresh()
    assert (names(source), source.num_failures, source.is_stale) == (["b"], 2, True)
    write(tmp_path, f"secret: {SECRET}\ntenants: [{{name: b}}]\n")
    source.refresh()
    assert (names(source), source.num_reloads, source.is_stale) == (["b"], 1, False)


def test_a_mounted_secret_that_is_swapped_counts(tmp_path: Path) -> None:
    """As the kubelet does it: files are links into `..data`, a link to the version's folder."""
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        write(tmp_path / version, f"secret: {SECRET}\ntenants: [{{name: {version}}}]\n", "t.yaml")
    mount = tmp_path / "mount"
    mount.mkdir()
    (mount / "..data").symlink_to(tmp_path / "v1")
    (mount / "t.yaml").symlink_to(Path("..data") / "t.yaml")
    source = TenantSource(mount)
    assert names(source) == ["v1"]

    (mount / "..new").symlink_to(tmp_path / "v2")
    (mount / "..new").rename(mount / "..data")
    source.refresh()
    assert names(source) == ["v2"]
