"""`octavo models`: the models in the cache."""

from typing import Annotated

import typer

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
        help="A catalogue name (`octavo models list`), a model folder, a .gguf file, or a hub name "
        "(org/name).",
    ),
]
_Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a hub model. Default: main.")
]


@app.command()
def pull(model: _Name, revision: _Revision = None) -> None:
    """Fetch a model into the cache, or convert a .gguf file; print the folder it is in.

    Does nothing where the model is already there. An interrupted pull leaves nothing behind.
    """
    from octavo.cli.console import ByteProgress
    from octavo_runtime.models.source import resolve_model

    with ByteProgress() as progress:
        folder = resolve_model(model, revision=revision, progress=progress)
    print(folder)


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
