"""`octavo chat`: talk to a running platform."""

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

_HELP = "/new starts over, /exit or Ctrl-D ends"


def chat(
    question: Annotated[
        str | None,
        typer.Argument(
            metavar="[QUESTION]",
            help="Ask this one question and exit; `-` reads it from standard input. Without it: a "
            "conversation.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[
        str | None, typer.Option("-q", "--quick", metavar="TEXT", help="QUESTION, as a flag.")
    ] = None,
    url: Url = DEFAULT_URL,
    model: Model = None,
    system: Annotated[
        str | None, option("--system", "--system-prompt", help="System message.")
    ] = None,
    max_tokens: Annotated[
        int, option("--max-tokens", help="Longest answer, in tokens.", min=1)
    ] = 1024,
    temperature: Annotated[
        float,
        option(
            "--temperature",
            help="How freely words are drawn; 0: always the likeliest.",
            min=0,
            max=2,
        ),
    ] = 0.2,
    api_key: ApiKey = None,
    stats: Stats = None,
) -> None:
    """Chat with the model of a running platform."""
    from octavo.chat_client import Answer

    client = connect(url, api_key)
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)

    def answer(text: str) -> None:
        asked = [*messages, {"role": "user", "content": text}]
        reply = Answer()
        pieces = client.stream(name, asked, reply, max_tokens=max_tokens, temperature=temperature)
        show(pieces, reply, stats)
        messages[:] = [*asked, {"role": "assistant", "content": reply.text}]

    def start_over() -> None:
        messages[:] = start

    try:
        name = model or first_model(client)
        if (words := question if quick is None else quick) is not None:
            answer(text_of(words))
        else:
            converse(name, _HELP, answer, start_over)
    finally:
        client.close()
