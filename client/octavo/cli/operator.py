"""`octavo operator`: the Kubernetes operator, which makes ModelDeployments run."""

import dataclasses
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ValidationError

from octavo.cli.options import option
from octavo_operator.settings import OperatorSettings
from octavo_protocol.errors import ConfigError
from octavo_protocol.resources.base import field_errors, invalid
from octavo_protocol.resources.pod_spec import PodTemplateSpec

_DEFAULTS: dict[str, Any] = {
    each.name: each.default for each in dataclasses.fields(OperatorSettings)
}


def operator(
    *,
    runtime_image: Annotated[
        str, option("--runtime-image", help="Image of the replicas, for specs that name none.")
    ],
    redis_url: Annotated[
        str | None,
        option(
            "--redis-url",
            help="Redis where replicas register, as pods reach it. With a password in it, set "
            "OCTAVO_REDIS_URL instead: arguments can be read by others.",
            show_default=False,
        ),
    ] = None,
    batch_image: Annotated[
        str,
        option(
            "--batch-image",
            help="Image of the pods of BatchJobs, as the router's, which is small. Default: the "
            "runtime's.",
        ),
    ] = _DEFAULTS["batch_image"],
    image_pull_policy: Annotated[
        Literal["Always", "IfNotPresent", "Never"],
        option("--image-pull-policy", help="When nodes pull the image."),
    ] = _DEFAULTS["image_pull_policy"],
    router_url: Annotated[
        str, option("--router-url", help="Base URL of the router's Service, for status.endpoint.")
    ] = _DEFAULTS["router_url"],
    namespaces: Annotated[
        str,
        option("--namespaces", help="Namespaces to watch, separated by commas. Default: all."),
    ] = "",
    operator_namespace: Annotated[
        str, option("--operator-namespace", help="Where the leader's lease is.")
    ] = _DEFAULTS["operator_namespace"],
    identity: Annotated[
        str | None,
        option(
            "--identity",
            help="Name of this process among the operator's replicas. Default: the host's.",
            show_default=False,
        ),
    ] = None,
    leader_election: Annotated[
        bool,
        option(
            "--leader-election/--no-leader-election",
            help="Act only while holding the lease, so that several can run.",
        ),
    ] = _DEFAULTS["leader_election"],
    resync: Annotated[
        float,
        option(
            "--resync",
            help="Seconds after which each ModelDeployment is looked at though nothing happened.",
            min=1,
        ),
    ] = _DEFAULTS["resync_s"],
    replica_api_key: Annotated[
        str | None,
        option(
            "--replica-api-key",
            help="Key that replicas ask for, to have them load adapters; better set as "
            "OCTAVO_REPLICA_API_KEY: arguments can be read by others.",
            show_default=False,
        ),
    ] = None,
    pod_defaults_file: Annotated[
        Path | None,
        option(
            "--pod-defaults-file",
            help="YAML file with a podTemplate that is laid under every deployment's own.",
            exists=True,
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    health_port: Annotated[
        int,
        option("--health-port", help="Port of /healthz, /readyz and /metrics.", min=0, max=65535),
    ] = _DEFAULTS["health_port"],
    max_concurrent: Annotated[
        int,
        option("--max-concurrent", help="ModelDeployments worked on at once.", min=1, max=256),
    ] = _DEFAULTS["max_concurrent"],
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        option("--log-level", help="How much to log."),
    ] = _DEFAULTS["log_level"],
) -> None:
    """Run the Kubernetes operator.

    It watches ModelDeployments, LoraAdapters and BatchJobs and keeps their pods, Services and
    registrations as they should be. Credentials: the pod's service account, else KUBECONFIG. Every
    flag can also be set as OCTAVO_<FLAG>.
    """
    if redis_url is None:
        raise ConfigError("the operator needs Redis: set OCTAVO_REDIS_URL, or give --redis-url")
    settings = OperatorSettings(
        runtime_image=runtime_image,
        redis_url=redis_url,
        replica_api_key=replica_api_key,
        batch_image=batch_image,
        image_pull_policy=image_pull_policy,
        router_url=router_url,
        namespaces=tuple(name for each in namespaces.split(",") if (name := each.strip())),
        operator_namespace=operator_namespace,
        identity=identity or socket.gethostname(),
        leader_election=leader_election,
        resync_s=resync,
        pod_defaults=_pod_defaults(pod_defaults_file),
        health_port=health_port,
        max_concurrent=max_concurrent,
        log_level=log_level,
    )
    from octavo_operator.run import run_operator

    run_operator(settings)


def _pod_defaults(path: Path | None) -> PodTemplateSpec:
    """Raises `ConfigError` with the file's name and every field's path."""
    if path is None:
        return PodTemplateSpec()
    try:
        return PodTemplateSpec.model_validate(yaml.safe_load(path.read_text("utf-8")) or {})
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the pod defaults {path}: {error}") from error
    except ValidationError as error:
        raise invalid(str(path), list(field_errors(error))) from error
