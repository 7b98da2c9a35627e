"""`octavo up`: a whole platform on this machine from one manifest."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from octavo.cli.options import option


def up(
    manifest: Annotated[
        Path,
        typer.Option(
            "-f",
            "--file",
            metavar="MANIFEST",
            help="A ModelDeployment in YAML, such as examples/01-smollm2.yaml.",
            exists=True,
            dir_okay=False,
        ),
    ],
    host: Annotated[
        str, option("--host", help="Address the router listens on; 0.0.0.0 for every interface.")
    ] = "127.0.0.1",
    port: Annotated[
        int, option("--port", help="Port the router listens on.", min=1, max=65535)
    ] = 8000,
    redis_url: Annotated[
        str | None,
        option("--redis-url", help="A running Redis to use. Default: one of our own, private."),
    ] = None,
    greet: Annotated[
        bool, typer.Option("--greet/--no-greet", help="Ask a first question and show the answer.")
    ] = True,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        option("--log-level", help="How much the processes log."),
    ] = "info",
) -> None:
    """Run a manifest's whole platform on this machine.

    That is Redis, the deployment's replicas, and a router in front of them. Fetches the model if
    needed, starts everything, asks a first question, and stays until Ctrl-C, which lets running
    requests finish. The same manifest is what Kubernetes will get.
    """
    from octavo.local.platform import UpOptions, run_platform

    raise typer.Exit(
        run_platform(
            UpOptions(
                manifest=manifest,
                host=host,
                port=port,
                redis_url=redis_url,
                greet=greet,
                log_level=log_level,
            )
        )
    )
