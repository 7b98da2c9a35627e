"""`octavo complete`: let the model of a running platform continue a text."""

from typing import Annotated

import typer

from octavo.cli.answering import (
    DEFAULT_URL,
    ApiKey,
    Model,
    Stats,
    Url,
    connect,
    converse,
    first_model,
    show,
    text_of,
)
from octavo.cli.options import option

_HELP = "each line is continued on its own; /exit or Ctrl-D ends"


def complete(
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROMPT]",
            help="Continue this one text and exit; `-` reads it from standard input. Without it: "
            "line by line.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[
        str | None, typer.Option("-q", "--quick", metavar="TEXT", help="PROMPT, as a flag.")
    ] = None,
    url: Url = DEFAULT_URL,
    model: Model = None,
    max_tokens: Annotated[
        int | None,
        option(
            "--max-tokens", help="Longest continuation, in tokens. Default: the server's.", min=1
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        option(
            "--temperature", help="How freely words are drawn. Default: the model's.", min=0, max=2
        ),
    ] = None,
    api_key: ApiKey = None,
    stats: Stats = None,
) -> None:
    """Continue texts with the model of a running platform."""
    from octavo.chat_client import Answer

    client = connect(url, api_key)

    def answer(text: str) -> None:
        reply = Answer()
        pieces = client.complete(name, text, reply, max_tokens=max_tokens, temperature=temperature)
        show(pieces, reply, stats)

    try:
        name = model or first_model(client)
        if (words := prompt if quick is None else quick) is not None:
            answer(text_of(words))
        else:
            converse(name, _HELP, answer, lambda: None)
    finally:
        client.close()
