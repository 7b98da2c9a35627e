"""Models in an OCI registry: what layers mean, logins, digests."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.model_servers import Registry, serving
from tests.unit.models.packed import MODEL, WEIGHTS, tar
from tests.unit.models.tiny_gguf import TinyGguf

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.cache import silent
from octavo_runtime.models.remote import fetch_remote, patience, transfer
from octavo_runtime.models.remote.registry import Reference, parse_reference

FETCHED = ["LICENSE", "config.json", "model.safetensors", "tokenizer.json"]
FILE = "application/octet-stream"
TAR_GZ = "application/vnd.oci.image.layer.v1.tar+gzip"
TITLE = "org_opencontainers_image_title"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.setattr(transfer, "_FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.0)
    for name in ("OCI_USERNAME", "OCI_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    state = Registry()
    with serving(state):
        yield state


def files(registry: Registry, key: str = TITLE) -> list[dict[str, Any]]:
    """Layers that are the model's files, titled."""
    return [registry.layer(content, FILE, **{key: name}) for name, content in MODEL.items()]


def fetched(registry: Registry, folder: Path, reference: str = ":v1") -> list[str]:
    folder.mkdir(exist_ok=True)
    fetch_remote(f"oci://{registry.host}/{registry.repository}{reference}", silent, folder)
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("key", [TITLE, "org_cncf_model_filepath"])
def test_titled_layers_are_files(registry: Registry, tmp_path: Path, key: str) -> None:
    registry.push(*files(registry, key))

    assert fetched(registry, tmp_path / "m") == FETCHED
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("media_type", "mode"),
    [
        (TAR_GZ, "w:gz"),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", "w:gz"),
        ("application/vnd.cncf.model.weight.v1.tar", "w"),
    ],
)
def test_packed_layers_are_unpacked(
    registry: Registry, tmp_path: Path, media_type: str, mode: str
) -> None:
    weights = {"model.safetensors": WEIGHTS}
    others = {name: content for name, content in MODEL.items() if name not in weights}
    layers = [
        registry.layer(tar(part, below="models/", mode=mode), media_type)
        for part in ({"etc/os-release.txt": b"debian"}, others, weights)
    ]
    registry.push(*layers)

    assert fetched(registry, tmp_path / "m") == FETCHED


def test_folder_pushed_by_oras_is_unpacked(registry: Registry, tmp_path: Path) -> None:
    packed = registry.layer(
        tar(MODEL, below="model/", mode="w:gz"),
        FILE,
        **{TITLE: "model", "io_deis_oras_content_unpack": "true"},
    )
    registry.push(packed)

    assert fetched(registry, tmp_path / "m") == FETCHED


def test_gguf_layer_without_a_title_is_a_model(registry: Registry, tmp_path: Path) -> None:
    content = TinyGguf().write(tmp_path / "tiny.gguf").read_bytes()
    registry.push(registry.layer(content, "application/vnd.docker.ai.gguf.v3"))

    assert {"config.json", "model.safetensors"} <= set(fetched(registry, tmp_path / "m"))


def test_digest_may_stand_for_the_tag_and_is_checked(registry: Registry, tmp_path: Path) -> None:
    digest = registry.push(*files(registry))

    assert fetched(registry, tmp_path / "a", f"@{digest}") == FETCHED
    registry.manifests[digest] = (registry.manifests[digest][0], b"{}")
    with pytest.raises(ConfigError, match="the manifest's digest is sha256:"):
        fetched(registry, tmp_path / "b", f"@{digest}")


def test_index_leads_to_its_manifest(registry: Registry, tmp_path: Path) -> None:
    digest = registry.push(*files(registry), tag="x")
    index_type = "application/vnd.oci.image.index.v1+json"
    entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest}
    index = {"schemaVersion": 2, "mediaType": index_type, "manifests": [entry]}
    registry.manifests["v1"] = (index_type, json.dumps(index).encode())

    assert fetched(registry, tmp_path / "m") == FETCHED


def test_login_is_used_where_the_registry_asks_for_it(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.user, registry.password, registry.token_uses = "me", "secret", 3
    registry.push(*files(registry))
    monkeypatch.setenv("OCI_USERNAME", "me")
    monkeypatch.setenv("OCI_PASSWORD", "secret")

    assert fetched(registry, tmp_path / "m") == FETCHED
    assert len(registry.uses) >= 2  # a token that had run out was renewed


@pytest.mark.parametrize("password", [None, "wrong-password"])
def test_refused_login_is_explained_and_not_shown(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str | None
) -> None:
    registry.user, registry.password = "me", "secret"
    registry.push(*files(registry))
    if password is not None:
        monkeypatch.setenv("OCI_USERNAME", "me")
        monkeypatch.setenv("OCI_PASSWORD", password)

    with pytest.raises(ConfigError, match="OCI_USERNAME and OCI_PASSWORD") as caught:
        fetched(registry, tmp_path / "m")

    assert "wrong-password" not in str(caught.value)


def test_broken_connections_are_continued(registry: Registry, tmp_path: Path) -> None:
    registry.push(*files(registry))
    registry.cut_after, registry.num_cuts = 250_000, 2

    assert fetched(registry, tmp_path / "m") == FETCHED
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == WEIGHTS


def test_blob_that_is_not_its_digest_is_refused(registry: Registry, tmp_path: Path) -> None:
    layer = registry.layer(WEIGHTS, FILE, **{TITLE: "model.safetensors"})
    registry.blobs[layer["digest"]] = WEIGHTS[::-1]
    registry.push(layer, registry.layer(b"{}", FILE, **{TITLE: "config.json"}))

    wrong = hashlib.sha256(WEIGHTS[::-1]).hexdigest()
    with pytest.raises(ConfigError, match=f"model.safetensors has the SHA-256 {wrong}"):
        fetched(registry, tmp_path / "m")


@pytest.mark.parametrize("title", ["../config.json", "/etc/config.json"])
def test_titles_cannot_escape(registry: Registry, tmp_path: Path, title: str) -> None:
    registry.push(registry.layer(b"{}", FILE, **{TITLE: title}))

    with pytest.raises(ConfigError, match="such paths are not taken"):
        fetched(registry, tmp_path / "m")


def test_odd_artifacts_are_explained(registry: Registry, tmp_path: Path) -> None:
    zstd = "application/vnd.oci.image.layer.v1.tar+zstd"
    registry.push(registry.layer(b"", zstd), tag="zstd")
    registry.push({"mediaType": FILE, "annotations": {TITLE.replace("_", "."): "a.json"}}, tag="x")
    registry.push(registry.layer(b"", "application/vnd.in-toto+json"), tag="none")
    registry.manifests["text"] = ("text/plain", b"hello")
    odd = {"layers": [1, {"annotations": []}, {"mediaType": 7}]}
    registry.manifests["odd"] = ("application/json", json.dumps(odd).encode())
    registry.manifests["index"] = ("application/json", b'{"manifests": [{"digest": "/../x"}, 2]}')

    for tag, message in (
        ("zstd", "packed with zstd"),
        ("x", "no SHA-256 digest and size"),
        ("none", "has no model in it"),
        ("text", "not JSON"),
        ("odd", "has no model in it"),
        ("index", "names no manifest"),
        ("gone", "gone does not exist"),
    ):
        with pytest.raises(ConfigError, match=message):
            fetched(registry, tmp_path / tag, f":{tag}")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("oci://r.io/a/b", ("r.io", "a/b", "latest")),
        ("oci://r.io:5000/a/b:v1.2", ("r.io:5000", "a/b", "v1.2")),
        (f"oci://r.io/a:v1@sha256:{'0' * 64}", ("r.io", "a", f"sha256:{'0' * 64}")),
    ],
)
def test_references_are_parsed(source: str, expected: tuple[str, str, str]) -> None:
    assert parse_reference(source) == Reference(source, *expected)


@pytest.mark.parametrize("source", ["oci://r.io", "oci://r.io/A:v", "oci://me:pass@r.io/a:v"])
def test_odd_references_are_refused(source: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_reference(source)

    assert "pass" not in str(caught.value).replace("password", "")
