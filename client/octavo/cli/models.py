"""`octavo models`: the models in the cache."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo_protocol.errors import ConfigError
from octavo_protocol.keys import Keys

if TYPE_CHECKING:
    from octavo.cli.pull_progress import PullProgress

app = typer.Typer(
    help="Fetch, list and remove models in the local cache.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

_Name = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A catalogue name (`octavo models list`), a model folder, a .gguf file, a hub name "
        "(org/name), or a source: s3://, gs://, oci://, http(s)://.",
    ),
]
_Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a hub model. Default: main.")
]


@app.command()
def pull(
    model: _Name,
    revision: _Revision = None,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Fetch into this folder instead of the cache; it is marked when it is complete.",
        ),
    ] = None,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle",
            help="With --to: fetch pickled weights (*.bin, *.pt) too. Octavo loads none.",
        ),
    ] = False,
    progress_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Append how far it has come: JSON lines, in bytes."),
    ] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(
            envvar="OCTAVO_REDIS_URL",
            help="With --deployment: Redis through which the operator sees how far it has come.",
            show_default=False,
        ),
    ] = None,
    namespace: Annotated[str, typer.Option(help="Namespace of that deployment.")] = "default",
    deployment: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --to: the deployment that the model is for."),
    ] = None,
    termination_log: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Where Kubernetes reads a container's last words; only written if it exists.",
        ),
    ] = Path("/dev/termination-log"),
) -> None:
    """Fetch a model into the cache, or convert a .gguf file; print the folder it is in.

    Does nothing where the model is already there. What an interrupted pull has fetched from
    a web server, registry or object store is kept, and the next one goes on from there.
    """
    from octavo.cli.console import ByteProgress
    from octavo.cli.pull_progress import PullProgress, Report

    if allow_pickle and to is None:
        raise ConfigError("--allow-pickle goes with --to: nothing in the cache may be a pickle")
    with ByteProgress() as bars:
        report: Report = bars
        if redis_url is not None and deployment is not None and to is not None:
            from octavo.cli.redis_progress import RedisProgress

            report = RedisProgress(redis_url, Keys(namespace, deployment), str(to), bars)
        folder = _pull(
            model, revision, to, allow_pickle, PullProgress(progress_file, termination_log, report)
        )
    print(folder)


def _pull(
    model: str, revision: str | None, to: Path | None, allow_pickle: bool, told: "PullProgress"
) -> Path:
    """The folder that holds the model now."""
    with told as progress:
        if to is None:
            from octavo_runtime.models.source import resolve_model

            folder = resolve_model(model, revision=revision, progress=progress)
            progress.succeeded(f"{folder} holds the model")
            return folder
        from octavo_runtime.models.pull import pull_model

        pulled = pull_model(
            model, to, revision=revision, allow_pickle=allow_pickle, progress=progress
        )
        progress.succeeded(pulled.summary)
        return pulled.folder


@app.command("list")
def list_models() -> None:
    """List the models that can be pulled by name, and what the cache holds."""
    from octavo_runtime.models.inventory import cached_models, catalogue_models

    rows = catalogue_models()
    named = {row.path for row in rows}
    rows += [row for row in cached_models() if row.path not in named]
    width = max(len(row.name) for row in rows)
    print(f"{'MODEL':<{width}}  {'SIZE':>8}  CACHED  ABOUT")
    for row in rows:
        cached = "yes" if row.is_present else "no"
        size = f"{row.num_bytes / 1e6:.0f} MB"
        print(f"{row.name:<{width}}  {size:>8}  {cached:<6}  {row.about}")


@app.command()
def path(model: _Name, revision: _Revision = None) -> None:
    """Print the folder of a model that is already here; fail when it would have to be fetched."""
    from octavo_runtime.models.source import resolve_model

    print(resolve_model(model, revision=revision, local_only=True))


@app.command()
def remove(model: _Name) -> None:
    """Delete a catalogue model or a converted .gguf from the cache; your own files stay.

    Takes the names that `octavo models list` shows.
    """
    from octavo_runtime.models.inventory import remove_cached

    freed = remove_cached(model)
    print(f"removed {model}: {freed / 1e6:.0f} MB")
