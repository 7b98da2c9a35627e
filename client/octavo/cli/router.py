"""`octavo router`: the router alone, in front of replicas that run elsewhere."""

from typing import Annotated, Any, Literal

import typer

from octavo.cli.options import option, size_option
from octavo_protocol.model_deployment import RoutingPolicyName


def router(
    host: Annotated[
        str, option("--host", help="Address to listen on; 0.0.0.0 for every interface.")
    ] = "127.0.0.1",
    port: Annotated[int, option("--port", help="Port to listen on.", min=1, max=65535)] = 8000,
    redis_url: Annotated[
        str | None, option("--redis-url", help="Redis where the replicas register.")
    ] = None,
    replica_url: Annotated[
        list[str] | None,
        option(
            "--replica-url",
            help="URL of a replica; repeat it for several. For use without Redis.",
            show_default=False,
        ),
    ] = None,
    namespace: Annotated[
        str, option("--namespace", help="Namespace of the deployment in Redis.")
    ] = "default",
    deployment: Annotated[
        str, option("--deployment", help="Deployment whose replicas to route to.")
    ] = "default",
    policy: Annotated[
        RoutingPolicyName, option("--policy", help="How the router picks a replica.")
    ] = "expected-ttft",
    max_body_bytes: Annotated[
        Any, size_option("--max-body-bytes", help="Largest request body; larger ones get a 413.")
    ] = 10 * 2**20,
    drain_timeout: Annotated[
        float,
        option("--drain-timeout", help="Seconds that running requests get at shutdown.", min=0),
    ] = 30.0,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        option("--log-level", help="How much to log."),
    ] = "info",
) -> None:
    """Route requests to a deployment's replicas.

    Each request goes where its first token is expected soonest: by what is queued there and by how
    much of its prompt is already cached. Replicas are found through Redis (`octavo serve --redis-url …` with the same namespace and
    deployment), or listed with --replica-url. Every flag can also be set as OCTAVO_<FLAG>.
    """
    if redis_url is None and not replica_url:
        raise typer.BadParameter("give --redis-url, or one --replica-url for each replica")
    from octavo_router.server import RouterOptions, run_router

    run_router(
        RouterOptions(
            host=host,
            port=port,
            redis_url=redis_url,
            replica_urls=tuple(replica_url or ()),
            namespace=namespace,
            deployment=deployment,
            policy=policy,
            max_body_bytes=max_body_bytes,
            drain_timeout_s=drain_timeout,
            log_level=log_level,
        )
    )
