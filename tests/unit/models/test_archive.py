"""What an archive may not do, and which of its files are the model."""

import io
import tarfile
from pathlib import Path

import pytest
from tests.unit.models.packed import MODEL, tar, zipped

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.remote.archive import unpack
from octavo_runtime.models.remote.layout import Tree


def unpacked(content: bytes, folder: Path, name: str = "m.tar") -> list[str]:
    archive = folder / name
    archive.write_bytes(content)
    (target := folder / "model").mkdir()
    tree = Tree(folder / "tree")
    unpack(archive, tree)
    tree.move_model(target, "the source")
    assert sorted(path.name for path in folder.iterdir()) == [name, "model"]
    return sorted(path.name for path in target.iterdir())


@pytest.mark.parametrize("name", ["../config.json", "a/../../config.json", "/etc/config.json"])
@pytest.mark.parametrize("pack", [tar, zipped])
def test_paths_cannot_escape(tmp_path: Path, pack: object, name: str) -> None:
    (inside := tmp_path / "inside").mkdir()
    content = pack({name: b"{}"})  # type: ignore[operator]

    with pytest.raises(ConfigError, match="such paths are not taken"):
        unpacked(content, inside)

    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_are_refused(tmp_path: Path, kind: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("config.json")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)

    with pytest.raises(ConfigError, match="is a link; pack the files themselves"):
        unpacked(buffer.getvalue(), tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"not an archive", tar(MODEL)[:5000], tar(MODEL, mode="w:gz")[:500], zipped(MODEL)[:500]],
    ids=["empty", "text", "half a tar", "half a tar.gz", "half a zip"],
)
def test_broken_archive_is_explained(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ConfigError, match="the archive cannot be read"):
        unpacked(content, tmp_path)


def test_damaged_zip_is_explained(tmp_path: Path) -> None:
    content = bytearray(zipped({"config.json": b"x" * 1000}))
    content[45] ^= 0xFF

    with pytest.raises(ConfigError, match="the archive cannot be read"):
        unpacked(bytes(content), tmp_path)


def test_encrypted_zip_is_refused(tmp_path: Path) -> None:
    content = bytearray(zipped({"config.json": b"{}"}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1

    with pytest.raises(ConfigError, match=r"config\.json in the archive is encrypted"):
        unpacked(bytes(content), tmp_path)


def test_model_nearest_to_the_top_is_taken(tmp_path: Path) -> None:
    files = {"a/b/config.json": b"deep", "a/config.json": b"near", "a/model.safetensors": b"1"}

    assert unpacked(tar(files), tmp_path) == ["config.json", "model.safetensors"]
    assert (tmp_path / "model" / "config.json").read_bytes() == b"near"


def test_two_models_side_by_side_are_refused(tmp_path: Path) -> None:
    files = {"a/config.json": b"1", "b/config.json": b"2"}

    with pytest.raises(ConfigError, match="the source has several models in it: a, b"):
        unpacked(tar(files), tmp_path)


def test_archive_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no model in it"):
        unpacked(tar({"words.txt": b"1"}), tmp_path)


def test_folders_of_sentence_transformers_modules_come_along(tmp_path: Path) -> None:
    files = {
        "m/config.json": b"{}",
        "m/1_Pooling/config.json": b"pooling",
        "m/2_Dense/model.safetensors": b"1",
        "m/onnx/config.json": b"{}",
        "1_Pooling/config.json.txt": b"of another folder",
    }

    assert unpacked(tar(files), tmp_path) == ["1_Pooling", "2_Dense", "config.json"]
    assert (tmp_path / "model/1_Pooling/config.json").read_bytes() == b"pooling"
    assert (tmp_path / "model/2_Dense/model.safetensors").read_bytes() == b"1"
