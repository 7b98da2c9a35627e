"""What `octavo chat` and `octavo complete` share: server, model, how answers are shown."""

import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.cli.options import option

if TYPE_CHECKING:
    from octavo.chat_client import Answer, ChatClient

Url = Annotated[
    str, option("--url", help="Where the router or replica listens, with or without /v1.")
]
Model = Annotated[
    str | None,
    option("--model", "--model-name", help="Served model name. Default: the first one there."),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar=["OCTAVO_API_KEY", "OPENAI_API_KEY"],
        help="Key for servers that ask for one.",
        show_default=False,
    ),
]
Stats = Annotated[
    bool | None,
    option(
        "--stats/--no-stats", help="Tokens and times after each answer. Default: in a terminal."
    ),
]
DEFAULT_URL = "http://127.0.0.1:8000"


def connect(url: str, api_key: str | None) -> "ChatClient":
    from octavo.chat_client import ChatClient

    return ChatClient(url.rstrip("/").removesuffix("/v1"), api_key=api_key)


def first_model(client: "ChatClient") -> str:
    """The name of the first model that the server lists. Raises `OctavoError`."""
    from octavo_protocol.errors import UnavailableError

    names = client.models()
    if not names:
        raise UnavailableError("the server has no model ready yet; try again in a moment")
    return names[0]


def text_of(words: str) -> str:
    """`-` stands for standard input, without the line break that ends it."""
    return sys.stdin.read().removesuffix("\n") if words == "-" else words


def show(pieces: Iterator[str], answer: "Answer", stats: bool | None) -> None:
    """Prints the pieces as they arrive, and then what is known of the answer."""
    started = time.monotonic()
    first: float | None = None
    try:
        for piece in pieces:
            first = first or time.monotonic()
            print(piece, end="", flush=True)
    finally:
        if first is not None:  # an error gets a line of its own
            print()
    if first is not None and (sys.stdout.isatty() if stats is None else stats):
        usage = answer.usage
        elapsed = max(time.monotonic() - first, 1e-6)
        rate = max(usage.completion_tokens - 1, 0) / elapsed
        text = (
            f"{usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached), "
            f"{usage.completion_tokens} written; first after {first - started:.2f} s, "
            f"then {rate:.0f} tokens/s"
        )
        print(f"\033[2m{text}\033[0m" if sys.stdout.isatty() else text)


def converse(
    greeting: str, help_text: str, answer: Callable[[str], None], new: Callable[[], None]
) -> None:
    """Reads lines and answers each, until /exit or the end of the input.

    new: forgets what was said. An error of one answer is shown and ends nothing.
    """
    import readline  # noqa: F401  (gives input() history and line editing)

    from octavo_protocol.errors import OctavoError

    print(f"{greeting}: {help_text}")
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        match text:
            case "":
                continue
            case "/exit" | "/quit":
                return
            case "/new":
                new()
                continue
            case _ if text.startswith("/"):
                print(help_text)
                continue
        try:
            answer(text)
        except KeyboardInterrupt:
            print("\n(stopped)")
        except OctavoError as error:
            print(f"octavo: {error.message}", file=sys.stderr)
