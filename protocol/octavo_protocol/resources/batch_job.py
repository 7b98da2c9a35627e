"""BatchJob: a file of requests at one URL that becomes a file of answers at another, once."""

import re
from typing import Annotated, Literal

from pydantic import Field

from octavo_protocol.openai.batches import BatchEndpoint
from octavo_protocol.resources.base import ResourceModel, Rule, TransitionRule
from octavo_protocol.resources.lora_adapter import DeploymentRef
from octavo_protocol.resources.metadata import Metadata
from octavo_protocol.resources.model_source import SecretRef
from octavo_protocol.resources.pod_spec import PodTemplateSpec
from octavo_protocol.resources.scalars import ObjectName, ServedName

# Without backslashes: CEL would take them for its own.
_STORED = (
    "pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/.*[^/]|file:///.*[^/]"
    "|(s3|gs|gcs|az|abfs|abfss|hdfs|webhdfs|sftp|smb)://[^/]+/.*[^/]"
)
_READABLE = f"^({_STORED}|https?://[^/]+/.*)$"
_WRITABLE = f"^({_STORED})$"
_UPWARDS = "/[.][.](/|$)"
# Minutes up to 9999, hours up to 720, days up to 30.
_WINDOW = r"^([1-9][0-9]{0,3}m|([1-9][0-9]?|[1-6][0-9]{2}|7[01][0-9]|720)h|([1-9]|[12][0-9]|30)d)$"
_PLACES = "s3://bucket/file, gs://bucket/file, pvc://claim/file or file:///file"

FileUrl = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*://\S+$", max_length=2048)]


def _is_file(url: str | None, form: str) -> bool:
    return url is None or (bool(re.search(form, url)) and not re.search(_UPWARDS, url))


def _cel_is_file(field: str, form: str) -> str:
    return f"{field}.matches('{form}') && !{field}.matches('{_UPWARDS}')"


class BatchInput(ResourceModel):
    url: Annotated[
        FileUrl,
        Field(
            description="File of requests in OpenAI's batch format, one per line: "
            f"{_PLACES} (a path inside the container), or https://host/file."
        ),
    ]

    rules = (
        Rule(
            _cel_is_file("self.url", _READABLE),
            lambda self: _is_file(self.url, _READABLE),
            "url",
            f"write {_PLACES}, or https://host/file; no .. in the path",
        ),
    )


class BatchOutput(ResourceModel):
    url: Annotated[
        FileUrl,
        Field(description=f"File that the answers are written to: {_PLACES}."),
    ]
    errors_url: Annotated[
        FileUrl | None,
        Field(
            description="File that the requests that failed are written to, if some do. Default: "
            "beside the output, as `answers.errors.jsonl`."
        ),
    ] = None

    rules = (
        Rule(
            _cel_is_file("self.url", _WRITABLE),
            lambda self: _is_file(self.url, _WRITABLE),
            "url",
            f"write {_PLACES}; no .. in the path",
        ),
        Rule(
            f"!has(self.errorsUrl) || ({_cel_is_file('self.errorsUrl', _WRITABLE)})",
            lambda self: _is_file(self.errors_url, _WRITABLE),
            "errorsUrl",
            f"give another place for errors: {_PLACES}; no .. in the path",
        ),
        Rule(
            "!has(self.errorsUrl) || self.errorsUrl != self.url",
            lambda self: self.errors_url != self.url,
            "errorsUrl",
            "errors need a file of their own",
        ),
    )


class SecretKeyRef(ResourceModel):
    name: Annotated[ObjectName, Field(description="Secret in the resource's own namespace.")]
    key: Annotated[
        str,
        Field(
            pattern=r"^[-._a-zA-Z0-9]+$",
            max_length=253,
            description="Which of its values. Default api-key.",
        ),
    ] = "api-key"


class RouterRef(ResourceModel):
    """The platform that answers."""

    url: Annotated[
        str | None,
        Field(
            pattern=r"^https?://\S+$",
            max_length=2048,
            description="Its base URL. Default: the router of the operator's installation. "
            "Progress is known of that one alone; of another, how it ended.",
        ),
    ] = None
    api_key_secret_ref: Annotated[
        SecretKeyRef | None,
        Field(description="Secret with the API key. Default: none; the router asks for no key."),
    ] = None


class BatchJobSpec(ResourceModel):
    """What is to be done; it cannot be changed afterwards."""

    input: Annotated[BatchInput, Field(description="Where the requests come from.")]
    output: Annotated[BatchOutput, Field(description="Where the results go.")]
    model: Annotated[
        ServedName | None,
        Field(description="Served model that every line asks. Default: each line names its own."),
    ] = None
    target: Annotated[
        DeploymentRef | None,
        Field(
            description="ModelDeployment that every line asks, in place of a model's name. "
            "Default: none."
        ),
    ] = None
    endpoint: Annotated[
        BatchEndpoint,
        Field(description="Where all requests go. Default /v1/chat/completions."),
    ] = "/v1/chat/completions"
    priority: Annotated[
        int,
        Field(
            ge=-1000,
            le=1000,
            description="Of the platform's batches, those of lower numbers go first; all of them "
            "go behind other requests. Default 0.",
        ),
    ] = 0
    completion_window: Annotated[
        str,
        Field(
            pattern=_WINDOW,
            description="How long the platform may take, in m, h or d, up to 30d. Lines that have "
            "no answer by then fail. Default 24h.",
        ),
    ] = "24h"
    secret_ref: Annotated[
        SecretRef | None,
        Field(
            description="Secret whose keys become environment variables where the files are read "
            "and written, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Default: none."
        ),
    ] = None
    router: Annotated[RouterRef, Field(description="Default: the installation's router.")] = (
        RouterRef()
    )
    ttl_seconds_after_finished: Annotated[
        int | None,
        Field(
            ge=0,
            description="Seconds after its end after which the BatchJob is deleted. Default: it "
            "stays. The files stay in any case.",
        ),
    ] = None
    image: Annotated[
        str | None,
        Field(
            pattern=r"^\S+$",
            max_length=1024,
            description="Image of the pod that reads and writes the files, for file systems that "
            "the default one has no package for. Default: the operator's setting.",
        ),
    ] = None
    pod_template: Annotated[
        PodTemplateSpec, Field(description="Default: nothing is laid over the pod.")
    ] = PodTemplateSpec()

    rules = (
        Rule(
            "!(has(self.model) && has(self.target))",
            lambda self: self.model is None or self.target is None,
            "target",
            "give either model or target, not both",
        ),
    )
    transition_rules = (
        TransitionRule(
            "self.input == oldSelf.input && self.output == oldSelf.output",
            lambda self, old: (self.input, self.output) == (old.input, old.output),
            "input",
            "the files of a BatchJob cannot be changed; make another BatchJob",
        ),
        TransitionRule(
            "self.endpoint == oldSelf.endpoint && self.priority == oldSelf.priority"
            " && self.completionWindow == oldSelf.completionWindow"
            " && has(self.model) == has(oldSelf.model)"
            " && (!has(self.model) || self.model == oldSelf.model)"
            " && has(self.target) == has(oldSelf.target)"
            " && (!has(self.target) || self.target == oldSelf.target)",
            lambda self, old: _asked(self) == _asked(old),
            "endpoint",
            "what a BatchJob asks, and when, cannot be changed; make another BatchJob",
        ),
    )


def _asked(spec: BatchJobSpec) -> tuple[object, ...]:
    return (spec.endpoint, spec.priority, spec.completion_window, spec.model, spec.target)


class BatchJob(ResourceModel):
    """A file of requests that the platform answers once, in its own time, into another file."""

    api_version: Literal["octavo.dev/v1alpha1"]
    kind: Literal["BatchJob"]
    metadata: Metadata
    spec: BatchJobSpec
