"""The ModelDeployment resource as typed models: what `octavo up` runs today and Kubernetes will.

Field names are camelCase in manifests and snake_case in Python. Every description gives unit,
default and effect; the CRD will be generated from here.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic import ValidationError as PydanticValidationError
from pydantic.alias_generators import to_camel

from octavo_protocol.errors import ConfigError

# RFC 1123 label: what Kubernetes accepts as a name.
_NAME = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"

# Parsers are named by words; a value that looks like a flag would be read as one.
_FLAG_VALUE = r"^[A-Za-z0-9_][A-Za-z0-9_-]*$"
# Flags of `octavo serve` that decide how replicas are reached and told apart.
_PLATFORM_FLAGS = frozenset(
    {
        *("--host", "--port", "--uds", "--advertise-url", "--replica-id", "--redis-url"),
        *("--namespace", "--deployment", "--served-model-name", "--config"),
    }
)

DType = Literal["auto", "bfloat16", "float16", "float32"]
SchedulingPolicy = Literal["fcfs", "priority"]
RoutingPolicyName = Literal["expected-ttft", "least-load", "round-robin"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)


class ModelSource(_Model):
    source: Annotated[
        str,
        Field(
            min_length=1,
            description="Where the model comes from: a catalogue name (`smollm2`), a local folder "
            "or .gguf file (`file:///models/x`), or a hub name (`hf://org/name`).",
        ),
    ]
    revision: Annotated[
        str | None, Field(description="Branch, tag or commit on the hub. Default: the main branch.")
    ] = None


class EngineSpec(_Model):
    dtype: Annotated[
        DType, Field(description="Weights and activations. auto: what the checkpoint says.")
    ] = "auto"
    max_model_len: Annotated[
        int | None,
        Field(ge=2, description="Longest prompt plus output, in tokens. Default: the model's own."),
    ] = None
    max_num_seqs: Annotated[
        int | None,
        Field(
            ge=1,
            description="Sequences that run in one step at most. Default: 64 on a CPU, 256 on a "
            "GPU.",
        ),
    ] = None
    max_num_batched_tokens: Annotated[
        int | None,
        Field(ge=1, description="Token budget of one step. Default: 512 on a CPU, 8192 on a GPU."),
    ] = None
    block_size: Annotated[
        int, Field(ge=1, le=512, description="Tokens per KV block. Default 16.")
    ] = 16
    kv_cache_memory_mib: Annotated[
        int | None,
        Field(
            ge=1, description="KV pool of each replica, in MiB. Default: a share of free memory."
        ),
    ] = None
    enable_prefix_caching: Annotated[
        bool, Field(description="Reuse KV blocks of equal prefixes. Default true.")
    ] = True
    scheduling_policy: Annotated[
        SchedulingPolicy, Field(description="Order of the waiting queue. Default fcfs.")
    ] = "fcfs"
    tool_call_parser: Annotated[
        str | None,
        Field(
            pattern=_FLAG_VALUE,
            description="How this model writes tool calls (`hermes`, `llama3_json`, …). With it, "
            "tools may be used with tool_choice auto. Default: none.",
        ),
    ] = None
    reasoning_parser: Annotated[
        str | None,
        Field(
            pattern=_FLAG_VALUE,
            description="How this model marks its reasoning (`qwen3`, `deepseek_r1`, …). "
            "Default: none; the answer is then one text.",
        ),
    ] = None
    extra_args: Annotated[
        list[str],
        Field(
            description="Further flags of `octavo serve`, one word each, after those above. "
            "Addresses, names and Redis are set by the platform and refused here. Default: none."
        ),
    ] = []

    @field_validator("extra_args")
    @classmethod
    def _check_extra_args(cls, words: list[str]) -> list[str]:
        for word in words:
            flag = word.split("=")[0].replace("_", "-")
            if flag in _PLATFORM_FLAGS:
                raise ValueError(f"{flag} is set by the platform; leave it out")
        return words


class RoutingSpec(_Model):
    policy: Annotated[RoutingPolicyName, Field(description="How the router picks a replica.")] = (
        "expected-ttft"
    )


class ModelDeploymentSpec(_Model):
    model: ModelSource
    served_names: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(description="Model names in the API. Default: the deployment's name."),
    ] = []
    replicas: Annotated[int, Field(ge=1, le=64, description="Copies of the model. Default 1.")] = 1
    engine: EngineSpec = EngineSpec()
    routing: RoutingSpec = RoutingSpec()


class Metadata(_Model):
    name: Annotated[str, Field(pattern=_NAME)]
    namespace: Annotated[str, Field(pattern=_NAME)] = "default"
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class ModelDeployment(_Model):
    api_version: Literal["octavo.dev/v1alpha1"]
    kind: Literal["ModelDeployment"]
    metadata: Metadata
    spec: ModelDeploymentSpec

    @model_validator(mode="after")
    def _default_served_name(self) -> "ModelDeployment":
        if not self.spec.served_names:
            self.spec.served_names = [self.metadata.name]
        return self


def parse_manifest(document: Any) -> ModelDeployment:
    """One parsed YAML document as a ModelDeployment. Raises `ConfigError` with the field's path."""
    try:
        return ModelDeployment.model_validate(document)
    except PydanticValidationError as error:
        lines = [
            f"  {'.'.join(str(part) for part in item['loc']) or 'document'}: {item['msg']}"
            for item in error.errors(include_url=False)
        ]
        raise ConfigError("the manifest is not valid:\n" + "\n".join(lines)) from error


def load_manifest(path: Path) -> ModelDeployment:
    """The single ModelDeployment in a YAML file. Raises `ConfigError`."""
    try:
        documents = [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d]
    except OSError as error:
        raise ConfigError(f"cannot read the manifest {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if len(documents) != 1:
        raise ConfigError(f"{path} must hold one document, it holds {len(documents)}")
    return parse_manifest(documents[0])
