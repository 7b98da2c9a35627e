"""The first answer of a fresh platform, and lines to paste for the next ones. Models that pool get
no question, but lines of their own.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Callable

import httpx

from octavo.chat_client import Answer, ChatClient
from octavo_protocol.errors import OctavoError

QUESTION = "What is the capital of France?"
_MAX_TOKENS = 64
_TIMEOUT_S = 60.0
_METHODS = {"/v1/embeddings": ("embed", "embedding[:4]"), "/classify": ("classify", "probs")}


def ask_first_question(base_url: str, model: str, write: Callable[[str], None]) -> bool:
    """Streams the answer to `QUESTION` through `write`; False (and why) where it fails."""
    client = ChatClient(base_url)
    answer = Answer()
    write(f"\nyou: {QUESTION}\n{model}: ")
    try:
        messages = [{"role": "user", "content": QUESTION}]
        settings = {"max_tokens": _MAX_TOKENS, "temperature": 0}
        for piece in client.stream(model, messages, answer, **settings):
            write(piece)
    except OctavoError as error:
        write(f"\nthe first question failed: {error.message}\n")
        return False
    finally:
        client.close()
    write("\n")
    return True


def pooling_route(base_url: str, model: str) -> str | None:
    """The route that is for this model; None: one that generates, or nothing that answers."""
    try:
        with httpx.Client(base_url=base_url, timeout=_TIMEOUT_S) as http:
            for path in ("/v1/embeddings", "/classify"):
                if http.post(path, json={"model": model, "input": "Hello!"}).is_success:
                    return path
    except httpx.HTTPError:
        pass
    return None


def pooling_lines(base_url: str, model: str, source: str, route: str) -> str:
    """How to use a model that pools: curl, and the LLM class; arguments as of `ready_lines`."""
    python = _short(sys.executable, "python")
    method, shown = _METHODS[route]
    return f"""
The platform is up at {base_url} (OpenAI-compatible; Ctrl-C stops it).

  curl:
    curl {base_url}{route} -H 'content-type: application/json' \\
      -d '{{"model": "{model}", "input": "Hello!"}}'

  In process, without the platform, in {python}:
    from octavo import LLM
    print(LLM("{source}").{method}(["Hello!"])[0].outputs.{shown})

"""


def ready_lines(base_url: str, model: str, source: str) -> str:
    """How to ask the next question: octavo chat, curl, the openai client, the LLM class.

    source: what names the model for `LLM`, which runs without the platform.
    """
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
    command, python = _short(sys.argv[0], "octavo"), _short(sys.executable, "python")
    url_flag = "" if base_url.endswith(":8000") else f" --url {base_url}"
    return f"""
The platform is up at {base_url} (OpenAI-compatible; Ctrl-C stops it).

  Talk to it:
    {command} chat{url_flag}

  curl:
    curl {base_url}/v1/chat/completions -H 'content-type: application/json' \\
      -d '{body}'

  The official openai client, in {python}:
    from openai import OpenAI
    client = OpenAI(base_url="{base_url}/v1", api_key="none")
    print(client.chat.completions.create(
        model="{model}", messages=[{{"role": "user", "content": "Hello!"}}]
    ).choices[0].message.content)

  In process, without the platform, in {python}:
    from octavo import LLM
    print(LLM("{source}").chat([{{"role": "user", "content": "Hello!"}}])[0].outputs[0].text)

"""


def _short(program: str, name: str) -> str:
    """How to type `program` here: its bare `name` where PATH leads to it."""
    # By path, not by file: a virtual environment's python is a link to one outside of it.
    if (found := shutil.which(name)) and os.path.abspath(found) == os.path.abspath(program):
        return name
    if os.path.basename(program) == "__main__.py":  # python -m octavo
        return f"{_short(sys.executable, 'python')} -m octavo"
    relative = os.path.relpath(program)
    return shlex.quote(program if relative.startswith("..") else relative)
