"""Models in OCI registries: the pull part of the distribution API, and what layers mean.

    layer with a title (ORAS, Helm, ModelKit)         a file of that name
    layer with a CNCF ModelPack file path             a file of that path
    layer of a GGUF media type (Docker's models)      model.gguf
    layer that is a tar, packed or not                an archive: images with model files in them

OCI_USERNAME and OCI_PASSWORD are sent to the registry and to the token service that it names.
Every layer's digest is checked. Source: OCI Distribution Specification 1.1, Image Manifest 1.1.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.remote.files import RemoteFile, is_wanted, refuse_user_part
from octavo_runtime.models.remote.http_read import check_answer, read_from
from octavo_runtime.models.remote.patience import patiently
from octavo_runtime.models.remote.registry_client import HINT, RegistryClient

_SOURCE = re.compile(
    r"oci://(?P<host>[^/@]+)/(?P<repository>[a-z0-9._/-]+)"
    r"(:(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]*))?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_MAX_MANIFEST_BYTES = 4 << 20
_TITLES = ("org.opencontainers.image.title", "org.cncf.model.filepath")
_UNPACK = "io.deis.oras.content.unpack"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TAR = re.compile(r"[.+]tar([.+](gzip|zstd))?$")


@dataclass(frozen=True, slots=True)
class Reference:
    """What a source names. reference: the tag, or the digest where there is one."""

    source: str
    host: str
    repository: str
    reference: str


def parse_reference(source: str) -> Reference:
    """Raises `ConfigError` if `source` is not of the form in the module's table."""
    refuse_user_part(source.partition("@sha256:")[0], "OCI_USERNAME and OCI_PASSWORD")
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise ConfigError(
            f"{source}: write oci://registry/repository:tag, or @sha256:… instead of the tag"
        )
    reference = match["digest"] or match["tag"] or "latest"
    return Reference(source, match["host"], match["repository"], reference)


def artifact_files(source: str, http: httpx.Client, *, allow_pickle: bool) -> list[RemoteFile]:
    """The wanted layers of the artifact at `source`.

    Raises `ConfigError` when it cannot be had.
    """
    reference = parse_reference(source)
    client = RegistryClient(reference.host, reference.repository, http)
    manifest = _manifest(client, reference, reference.reference)
    if manifest.get("mediaType") in _INDEXES or "manifests" in manifest:
        manifest = _manifest(client, reference, _first(manifest, source))
    layers = _objects(manifest.get("layers") or manifest.get("blobs"))
    named = [(_name(index, layer), layer) for index, layer in enumerate(layers)]
    return [
        _layer_file(client, name, layer)
        for name, layer in named
        if name.endswith(".tar") or is_wanted(name, allow_pickle=allow_pickle)
    ]


def _manifest(client: RegistryClient, about: Reference, reference: str) -> dict[str, Any]:
    accepted = {"Accept": ", ".join((*_MANIFESTS, *_INDEXES))}

    def ask() -> bytes:
        with client.get(f"manifests/{reference}", accepted) as response:
            check_answer(response, about.source, HINT)
            content = b""
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > _MAX_MANIFEST_BYTES:
                    raise ConfigError(f"{about.source}: its manifest is too long")
            return content

    content = patiently(ask, about.source)
    if reference.startswith("sha256:") and _digest(content) != reference:
        raise ConfigError(f"{about.source}: the manifest's digest is {_digest(content)}")
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise ConfigError(f"{about.source}: the manifest is not JSON") from error
    if not isinstance(manifest, dict):
        raise ConfigError(f"{about.source}: the manifest is not a JSON object")
    return manifest


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _first(index: Mapping[str, Any], source: str) -> str:
    """The digest of the index's first manifest; models are the same on every platform."""
    for entry in _objects(index.get("manifests")):
        digest = str(entry.get("digest", ""))
        if entry.get("mediaType", _MANIFESTS[0]) in _MANIFESTS and _DIGEST.fullmatch(digest):
            return digest
    raise ConfigError(f"{source}: its index names no manifest")


def _name(index: int, layer: Mapping[str, Any]) -> str:
    """The file that a layer is; `….tar` for one that has to be unpacked, empty for none."""
    media_type = str(layer.get("mediaType", ""))
    found = layer.get("annotations")
    annotations = found if isinstance(found, dict) else {}
    if match := _TAR.search(media_type):
        if match[2] == "zstd":
            raise ConfigError("the artifact's layers are packed with zstd; push them as gzip")
        return f"layer-{index}.tar"
    title = next((str(annotations[key]) for key in _TITLES if key in annotations), "")
    if annotations.get(_UNPACK) == "true":
        return f"layer-{index}.tar"
    return title or ("model.gguf" if "gguf" in media_type else "")


def _layer_file(client: RegistryClient, name: str, layer: Mapping[str, Any]) -> RemoteFile:
    digest, size = str(layer.get("digest", "")), layer.get("size")
    if not _DIGEST.fullmatch(digest) or not isinstance(size, int):
        raise ConfigError(f"layer {name}: its descriptor has no SHA-256 digest and size")

    def read(start: int) -> Iterator[bytes]:
        # The digest is the version: a blob cannot change.
        return read_from(partial(client.get, f"blobs/{digest}"), start, name, "")

    return RemoteFile(
        name=name,
        version=digest,
        num_bytes=size,
        read=read,
        sha256=digest.removeprefix("sha256:"),
    )
