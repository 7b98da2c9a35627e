"""`octavo router`: the router alone, in front of replicas that run elsewhere."""

import dataclasses
import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

from octavo.cli import serve_flags
from octavo.cli.options import option, size_option
from octavo_protocol.resources.model_deployment import RoutingPolicyName
from octavo_router.options import RouterOptions
from octavo_router.policies.weights import DEFAULT_WEIGHTS, read_weights

_ROUTER: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(RouterOptions)}


def router(
    *,
    redis_url: Annotated[
        str | None, option("--redis-url", help="Redis where the replicas register.")
    ] = None,
    replica_url: Annotated[
        list[str] | None,
        option(
            "--replica-url",
            help="URL of a replica; repeat it for several. In place of Redis.",
            show_default=False,
        ),
    ] = None,
    namespace: Annotated[
        str, option("--namespace", help="Namespace of the deployment in Redis.")
    ] = _ROUTER["namespace"],
    deployment: Annotated[
        str, option("--deployment", help="Deployment whose replicas to route to.")
    ] = _ROUTER["deployment"],
    all_deployments: Annotated[
        bool,
        option(
            "--all-deployments/--no-all-deployments",
            help="Serve every deployment that the operator has registered in Redis, each by its "
            "own policy, in place of the one that --namespace and --deployment name.",
        ),
    ] = _ROUTER["all_deployments"],
    namespaces: Annotated[
        str | None,
        option(
            "--namespaces",
            help="With --all-deployments: only of these namespaces, separated by commas.",
            show_default=False,
        ),
    ] = None,
    policy: Annotated[
        RoutingPolicyName, option("--policy", help="How the router picks a replica.")
    ] = _ROUTER["policy"],
    policy_weights: Annotated[
        Path | None,
        option(
            "--policy-weights",
            help="YAML file with the factors of expected-ttft: uncached, recent, running, "
            "adapter, tie_ms.",
            show_default=False,
        ),
    ] = None,
    max_attempts: Annotated[
        int,
        option("--max-attempts", help="Replicas that one request may be sent to.", min=1),
    ] = _ROUTER["max_attempts"],
    max_ejected_share: Annotated[
        float,
        option(
            "--max-ejected-share",
            help="Share of a deployment's replicas that may be left alone at once for being slow, "
            "silent or wrong.",
            min=0,
            max=1,
        ),
    ] = _ROUTER["max_ejected_share"],
    adapter_wait: Annotated[
        float,
        option(
            "--adapter-wait",
            help="Seconds that a request waits until a replica has loaded its adapter, before it "
            "goes to another one.",
            min=0,
        ),
    ] = _ROUTER["adapter_wait_s"],
    continue_patience: Annotated[
        float,
        option(
            "--continue-patience",
            help="Seconds that a stream whose replica failed waits for another to go on with it.",
            min=0,
        ),
    ] = _ROUTER["continue_patience_s"],
    resume_grace: Annotated[
        float,
        option(
            "--resume-grace",
            help="Seconds for which an answer with an Idempotency-Key is generated for a client "
            "that has left.",
            min=0,
        ),
    ] = _ROUTER["resume_grace_s"],
    resume_ttl: Annotated[
        float,
        option(
            "--resume-ttl",
            help="Seconds for which such an answer is kept after its end.",
            min=10,
        ),
    ] = _ROUTER["resume_ttl_s"],
    resume_stream_bytes: Annotated[
        Any,
        size_option("--resume-stream-bytes", help="Most that is kept of one such answer."),
    ] = _ROUTER["resume_stream_bytes"],
    resume_total_bytes: Annotated[
        Any,
        size_option(
            "--resume-total-bytes", help="Most that is kept of all such answers of a deployment."
        ),
    ] = _ROUTER["resume_total_bytes"],
    connect_timeout: Annotated[
        float, option("--connect-timeout", help="Seconds to reach a replica.", min=0.01)
    ] = _ROUTER["connect_timeout_s"],
    read_timeout: Annotated[
        float,
        option("--read-timeout", help="Longest silence of a replica, in seconds.", min=0.01),
    ] = _ROUTER["read_timeout_s"],
    files_url: Annotated[
        str | None,
        option(
            "--files-url",
            help="Folder or bucket (s3://…, gs://…) for /v1/files and /v1/batches, shared by all "
            "routers. Default: there are none.",
            show_default=False,
        ),
    ] = None,
    batch_worker: Annotated[
        bool,
        option(
            "--batch-worker/--no-batch-worker",
            help="Work on batches too, beside answering.",
        ),
    ] = _ROUTER["batch_worker"],
    max_file_bytes: Annotated[
        Any, size_option("--max-file-bytes", help="Largest file that may be uploaded.")
    ] = _ROUTER["max_file_bytes"],
    max_batch_lines: Annotated[
        int, option("--max-batch-lines", help="Most requests of one batch.", min=1)
    ] = _ROUTER["max_batch_lines"],
    max_body_bytes: Annotated[
        Any, size_option("--max-body-bytes", help="Largest request body; larger ones get a 413.")
    ] = _ROUTER["max_body_bytes"],
    drain_delay: Annotated[
        float,
        option(
            "--drain-delay",
            help="Seconds at shutdown in which the router says that it is not ready and still "
            "takes requests, for load balancers to leave it first.",
            min=0,
        ),
    ] = _ROUTER["drain_delay_s"],
    drain_timeout: Annotated[
        float,
        option("--drain-timeout", help="Seconds that running requests get at shutdown.", min=0),
    ] = _ROUTER["drain_timeout_s"],
    replica_api_key: Annotated[
        str | None,
        option(
            "--replica-api-key",
            help="Key that replicas ask for. Default: they get the client's.",
            show_default=False,
        ),
    ] = None,
    capture: Annotated[
        Path | None,
        option(
            "--capture",
            help="File to which the traffic is written as a trace: times, lengths and salted block "
            "hashes, no text. For `octavo sim` and `octavo replay`.",
            show_default=False,
        ),
    ] = None,
    capture_bytes: Annotated[
        Any,
        size_option(
            "--capture-bytes", help="Most bytes of that file and the one before it, FILE.1."
        ),
    ] = _ROUTER["capture_bytes"],
    capture_block_size: Annotated[
        int,
        option("--capture-block-size", help="Tokens of a block in that file.", min=1),
    ] = _ROUTER["capture_block_size"],
    tenants: Annotated[
        Path | None,
        option(
            "--tenants",
            help="YAML file, or folder of such files, that says who may use the router, with which "
            "keys, models and limits. In place of --api-key.",
            show_default=False,
        ),
    ] = None,
    usage_records: Annotated[
        int,
        option(
            "--usage-records",
            help="Finished requests of tenants that Redis remembers one by one.",
            min=1,
        ),
    ] = _ROUTER["usage_records"],
    queue_requests: Annotated[
        int | None,
        option(
            "--queue-requests",
            help="Requests that may wait in the router for each deployment while its replicas have "
            "no room; 0 sends all on at once. Default: 1024 with --tenants, else 0.",
            min=0,
            show_default=False,
        ),
    ] = None,
    queue_tokens: Annotated[
        Any, size_option("--queue-tokens", help="Likewise, tokens of prompts and outputs.")
    ] = _ROUTER["queue_tokens"],
    replica_backlog: Annotated[
        float,
        option(
            "--replica-backlog",
            help="Seconds of prompts that replicas get in advance of that.",
            min=0.1,
        ),
    ] = _ROUTER["replica_backlog_s"],
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        option("--log-level", help="How much to log."),
    ] = _ROUTER["log_level"],
    **http: Any,
) -> None:
    """Route requests to the replicas of a deployment, or of all.

    Each request goes where its first token is expected soonest: by what is queued there and by how
    much of its prompt is already cached. Replicas are found through Redis (`octavo serve
    --redis-url …` with the same namespace and deployment), or listed with --replica-url. Every flag
    can also be set as OCTAVO_<FLAG>.
    """
    options = RouterOptions(
        redis_url=redis_url,
        replica_urls=tuple(replica_url or ()),
        namespace=namespace,
        deployment=deployment,
        all_deployments=all_deployments,
        namespaces=_names(namespaces),
        policy=policy,
        policy_weights=read_weights(policy_weights) if policy_weights else DEFAULT_WEIGHTS,
        adapter_wait_s=adapter_wait,
        continue_patience_s=continue_patience,
        resume_grace_s=resume_grace,
        resume_ttl_s=resume_ttl,
        resume_stream_bytes=resume_stream_bytes,
        resume_total_bytes=resume_total_bytes,
        connect_timeout_s=connect_timeout,
        read_timeout_s=read_timeout,
        max_attempts=max_attempts,
        max_ejected_share=max_ejected_share,
        files_url=files_url,
        batch_worker=batch_worker,
        max_file_bytes=max_file_bytes,
        max_batch_lines=max_batch_lines,
        max_body_bytes=max_body_bytes,
        drain_delay_s=drain_delay,
        drain_timeout_s=drain_timeout,
        replica_api_key=replica_api_key,
        capture=capture,
        capture_bytes=capture_bytes,
        capture_block_size=capture_block_size,
        tenants=tenants,
        usage_records=usage_records,
        queue_requests=queue_requests,
        queue_tokens=queue_tokens,
        replica_backlog_s=replica_backlog,
        log_level=log_level,
        **serve_flags.given(http),
    )
    from octavo_router.server import run_router

    run_router(options)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name for part in (text or "").split(",") if (name := part.strip()))


def _signature() -> inspect.Signature:
    own = inspect.signature(router).parameters.values()
    named = [each for each in own if each.kind is inspect.Parameter.KEYWORD_ONLY]
    return inspect.Signature([*named, *serve_flags.parameters((serve_flags.HTTP,))])


router.__signature__ = _signature()  # type: ignore[attr-defined]  # typer reads the flags from it
