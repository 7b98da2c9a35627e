"""`octavo chat`: talk to a running platform."""

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.cli.options import option

if TYPE_CHECKING:
    from octavo.chat_client import ChatClient

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
    url: Annotated[
        str, option("--url", help="Where the router or replica listens.")
    ] = "http://127.0.0.1:8000",
    model: Annotated[
        str | None, option("--model", help="Served model name. Default: the first one there.")
    ] = None,
    system: Annotated[str | None, option("--system", help="System message.")] = None,
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
    api_key: Annotated[
        str | None, option("--api-key", help="Key for servers that ask for one.")
    ] = None,
) -> None:
    """Chat with the model of a running platform."""
    from octavo.chat_client import ChatClient

    client = ChatClient(url.rstrip("/").removesuffix("/v1"), api_key=api_key)
    try:
        name = model or _first_model(client)
        start = [{"role": "system", "content": system}] if system else []
        settings: dict[str, float] = {"max_tokens": max_tokens, "temperature": temperature}
        if question is not None:
            text = sys.stdin.read() if question == "-" else question
            _ask(client, name, [*start, {"role": "user", "content": text}], settings)
            return
        _converse(client, name, start, settings)
    finally:
        client.close()


def _first_model(client: "ChatClient") -> str:
    from octavo_protocol.errors import UnavailableError

    names = client.models()
    if not names:
        raise UnavailableError("the server has no model ready yet; try again in a moment")
    return names[0]


def _converse(
    client: "ChatClient",
    model: str,
    start: list[dict[str, str]],
    settings: dict[str, float],
) -> None:
    import readline  # noqa: F401  (gives input() history and line editing)

    from octavo_protocol.errors import OctavoError

    print(f"{model}: {_HELP}")
    messages = list(start)
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
                messages = list(start)
                continue
            case _ if text.startswith("/"):
                print(_HELP)
                continue
        messages.append({"role": "user", "content": text})
        try:
            messages.append(
                {"role": "assistant", "content": _ask(client, model, messages, settings)}
            )
        except KeyboardInterrupt:
            messages.pop()
            print("\n(stopped)")
        except OctavoError as error:
            messages.pop()
            print(f"octavo: {error.message}", file=sys.stderr)


def _ask(
    client: "ChatClient",
    model: str,
    messages: list[dict[str, str]],
    settings: dict[str, float],
) -> str:
    """Streams one answer to standard output; returns its text."""
    from octavo.chat_client import Answer

    answer = Answer()
    started = time.monotonic()
    first: float | None = None
    for piece in client.stream(model, messages, answer, **settings):
        first = first or time.monotonic()
        print(piece, end="", flush=True)
    print()
    if sys.stdout.isatty() and first is not None:
        usage = answer.usage
        elapsed = max(time.monotonic() - first, 1e-6)
        rate = max(usage.completion_tokens - 1, 0) / elapsed
        print(
            f"\033[2m{usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached), "
            f"{usage.completion_tokens} written; first after {first - started:.2f} s, "
            f"then {rate:.0f} tokens/s\033[0m"
        )
    return answer.text
