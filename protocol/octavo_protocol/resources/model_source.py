"""Where models and adapters come from, as manifests say it."""

import re
from typing import Annotated

from pydantic import Field

from octavo_protocol.resources.base import ResourceModel, Rule
from octavo_protocol.resources.scalars import ObjectName

SCHEMES = ("hf", "s3", "gs", "pvc", "oci", "http", "https", "file")
_SOURCE = rf"^(({'|'.join(SCHEMES)})://[^\s]+|[A-Za-z0-9][A-Za-z0-9._/-]*)$"
# Without backslashes: CEL would take them for its own.
_CLAIM = "^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/|$)"
_UPWARDS = "/[.][.](/|$)"


class SecretRef(ResourceModel):
    name: Annotated[ObjectName, Field(description="Secret in the resource's own namespace.")]


class ModelSource(ResourceModel):
    source: Annotated[
        str,
        Field(
            pattern=_SOURCE,
            max_length=2048,
            description="Where it comes from: `hf://org/name` (Hugging Face hub), "
            "`s3://bucket/path`, `gs://bucket/path`, `https://host/file.tar` (an archive or a "
            ".gguf file), "
            "`oci://registry/repository:tag`, `pvc://claim/path` (a PersistentVolumeClaim of the "
            "namespace, mounted read-only), "
            "`file:///path` (a path inside the container), or a catalogue name (`smollm2`).",
        ),
    ]
    revision: Annotated[
        str | None,
        Field(
            max_length=256,
            description="Branch, tag or commit on the hub; hf:// only. Pin a commit so that all "
            "replicas, also later ones, serve the same weights. Default: the main branch.",
        ),
    ] = None
    secret_ref: Annotated[
        SecretRef | None,
        Field(
            description="Secret whose keys become environment variables where the model is "
            "fetched: HF_TOKEN, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (also AWS_REGION, "
            "AWS_ENDPOINT_URL), GOOGLE_APPLICATION_CREDENTIALS_JSON, OCI_USERNAME and "
            "OCI_PASSWORD, HTTP_TOKEN. Default: none; the source is then read as a public one."
        ),
    ] = None

    rules = (
        Rule(
            "!has(self.revision) || !self.source.contains('://') || self.source.startsWith('hf://')",
            lambda self: self.revision is None or self.scheme in ("", "hf"),
            "revision",
            "only hf:// sources have revisions; put the version into the source's path or tag",
        ),
        Rule(
            f"!self.source.startsWith('pvc://') || self.source.matches('{_CLAIM}')",
            lambda self: self.scheme != "pvc" or re.search(_CLAIM, self.source) is not None,
            "source",
            "write pvc://claim/path, with the name of a PersistentVolumeClaim",
        ),
        Rule(
            f"!(self.source.contains('://') && self.source.matches('{_UPWARDS}'))",
            lambda self: self.scheme == "" or re.search(_UPWARDS, self.source) is None,
            "source",
            "leave .. out of the path",
        ),
        Rule(
            "!self.source.startsWith('file://') || self.source.startsWith('file:///')",
            lambda self: self.scheme != "file" or self.source.startswith("file:///"),
            "source",
            "write file:///path, with three slashes: an absolute path inside the container",
        ),
    )

    @property
    def scheme(self) -> str:
        """`hf`, `s3`, …; empty for a catalogue name."""
        return self.source.partition("://")[0] if "://" in self.source else ""

    @property
    def claim(self) -> tuple[str, str] | None:
        """(claim's name, path in it) of a pvc:// source."""
        if self.scheme != "pvc":
            return None
        name, _, path = self.source.removeprefix("pvc://").partition("/")
        return name, path
