"""The tokenizer and chat template that the router and every replica share.

One code path on both sides is what makes the router's block hashes equal the replica's. A replica
serves its `TokenizerBundle` over HTTP; routers load it from there, so they need no model folder.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import msgspec
import tokenizers

from octavo_protocol.bounded_memo import BoundedMemo
from octavo_protocol.errors import ConfigError, ValidationError
from octavo_protocol.openai import ChatCompletionRequest, TokenizeRequest
from octavo_protocol.tokenization import IncrementalEncoder, Tokenization

MEMO_BYTES = 64 * 2**20
# How much faster than tokenizing texts are rendered and looked up, at the least.
RENDERING_SPEED = 20
_TOKEN_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
# Names in `chat_template_kwargs` that mean something else here than the template's variables.
_RESERVED_NAMES = (
    *("self", "messages", "chat_template", "tools", "documents", "continue_final_message"),
    *_TOKEN_NAMES,
)
# Ends the text of a message that is to be continued: where it stands in the rendered text, the
# prompt ends. Its last space shows whether the template trims.
_CONTINUED = "<octavo-continues-here> "
# What a template can raise over values that it did not expect.
_TEMPLATE_FAILURES = (
    *(jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError),
    RecursionError,
)
_COMPILE_FAILURES = (jinja2.TemplateError, SyntaxError, ValueError, RecursionError)


class TokenizerBundle(msgspec.Struct):
    """Everything that turns a request into token ids; travels as JSON.

    default_chat_template_kwargs: variables of the template that requests may override.
    content_format: how the template reads a message's content; "auto": found out from it.
    exclude_tools_when_tool_choice_none: with tool_choice none the prompt has no tools.
    """

    tokenizer_json: str
    chat_template: str | None = None
    special_tokens: dict[str, str] = {}
    default_chat_template_kwargs: dict[str, Any] = {}
    content_format: Literal["auto", "string", "openai"] = "auto"
    exclude_tools_when_tool_choice_none: bool = False

    @property
    def id(self) -> str:
        """Equal ids tokenize equally."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]

    @classmethod
    def from_folder(cls, folder: Path) -> "TokenizerBundle":
        """Reads tokenizer.json, tokenizer_config.json and chat_template.jinja.

        Raises `ConfigError` where the folder has no fast tokenizer.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(
                f"{folder} has no tokenizer.json. Save one with transformers: "
                "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        config: dict[str, Any] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                config |= json.loads((folder / name).read_text(encoding="utf-8"))
        template = config.get("chat_template")
        if isinstance(template, list):  # named templates; "default" is the one for chat
            template = next((t["template"] for t in template if t["name"] == "default"), None)
        if (folder / "chat_template.jinja").is_file():
            template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        special = {}
        for name in _TOKEN_NAMES:
            token = config.get(name)
            if isinstance(token, dict):
                token = token["content"]
            if token is not None:
                special[name] = token
        return cls(path.read_text(encoding="utf-8"), template, special)


class Tokenizer:
    """Text to token ids and back. Thread-safe; encoding and decoding release the GIL.

    memo: keeps pieces of prompts, for those that have them too; tokenizers may share it.
    max_token_chars: length of the longest token.
    """

    def __init__(self, bundle: TokenizerBundle, memo: BoundedMemo[bytes] | None = None) -> None:
        self.bundle = bundle
        self.id = bundle.id
        self.backend: tokenizers.Tokenizer = tokenizers.Tokenizer.from_str(bundle.tokenizer_json)
        self.backend.no_truncation()
        self.backend.no_padding()
        memo = memo if memo is not None else BoundedMemo(MEMO_BYTES)
        self._encoder = IncrementalEncoder(self.backend, memo, self.id)
        eos = bundle.special_tokens.get("eos_token")
        self.eos_token_id: int | None = self.backend.token_to_id(eos) if eos else None
        self.vocab_size: int = self.backend.get_vocab_size(with_added_tokens=True)
        self.max_token_chars: int = max(map(len, self.backend.get_vocab()), default=1)
        self.special_token_ids: frozenset[int] = frozenset(
            token_id
            for token_id, token in self.backend.get_added_tokens_decoder().items()
            if token.special
        )

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        return cls(TokenizerBundle.from_folder(folder))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`. Raises `ValidationError` for what is not Unicode."""
        return self._encoder.whole(text, add_special_tokens=add_special_tokens)

    def begin(
        self, text: str, *, add_special_tokens: bool = True, cache_salt: str | None = None
    ) -> Tokenization:
        """The first of two steps to the ids of `encode`: looks up what is known of `text` under the
        salt. Raises as it does.
        """
        return self._encoder.begin(
            text, add_special_tokens=add_special_tokens, cache_salt=cache_salt or ""
        )

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        [text] = self.backend.decode_batch(
            [list(token_ids)], skip_special_tokens=skip_special_tokens
        )
        return text

    def token_text(self, token_id: int) -> str:
        """One token as text; bytes that are no character alone become U+FFFD."""
        return self.backend.decode([token_id], skip_special_tokens=False)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The conversation as the model's prompt text, as transformers renders it.

        Raises `ValidationError` where the model has no template or the template refuses.
        """
        template = self._template(chat_template)
        if continue_final_message and messages:
            messages = [*messages[:-1], _marked(messages[-1])]
        try:
            text: str = template.render(
                messages=list(messages),
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                **self.bundle.special_tokens,
                **kwargs,
            )
        except _TEMPLATE_FAILURES as error:
            raise ValidationError(f"chat template: {error}", parameter="messages") from error
        return _cut_at_mark(text) if continue_final_message and messages else text

    def _template(self, override: str | None) -> jinja2.Template:
        source = override if override is not None else self.bundle.chat_template
        if source is None:
            raise ValidationError(
                "this model has no chat template: use /v1/completions, or start the server "
                "with --chat-template"
            )
        try:
            return _compile_template(source)
        except ConfigError as error:
            if override is None:
                raise
            raise ValidationError(error.message, parameter="chat_template") from error

    def chat_prompt(self, request: ChatCompletionRequest | TokenizeRequest) -> str:
        """The text of a chat request's prompt. Raises `ValidationError`."""
        kwargs = (
            self.bundle.default_chat_template_kwargs
            | _effort_kwargs(request.reasoning_effort)
            | (request.chat_template_kwargs or {})
        )
        for name in _RESERVED_NAMES:
            if name in kwargs:
                raise ValidationError(
                    f"chat_template_kwargs may not set {name!r}", parameter="chat_template_kwargs"
                )
        content_format = self.content_format(request.chat_template)
        return self.apply_chat_template(
            [message.as_template_input(content_format) for message in request.messages or []],
            chat_template=request.chat_template,
            add_generation_prompt=kwargs.pop(
                "add_generation_prompt", request.add_generation_prompt
            ),
            continue_final_message=request.continue_final_message,
            tools=self._tools(request),
            documents=request.documents,
            **kwargs,
        )

    def _tools(
        self, request: ChatCompletionRequest | TokenizeRequest
    ) -> list[dict[str, Any]] | None:
        """The tools as plain dicts, which is what transformers hands to templates."""
        is_none = isinstance(request, ChatCompletionRequest) and request.tool_choice == "none"
        if not request.tools or (is_none and self.bundle.exclude_tools_when_tool_choice_none):
            return None
        return [tool.model_dump(exclude_none=True) for tool in request.tools]

    def chat_token_ids(self, request: ChatCompletionRequest | TokenizeRequest) -> list[int]:
        """The prompt of a chat request. The template owns the special tokens."""
        return self.encode(
            self.chat_prompt(request), add_special_tokens=bool(request.add_special_tokens)
        )

    def begin_chat(self, request: ChatCompletionRequest) -> Tokenization:
        """The first of two steps to `chat_token_ids`, as `begin`."""
        return self.begin(
            self.chat_prompt(request),
            add_special_tokens=bool(request.add_special_tokens),
            cache_salt=request.cache_salt,
        )

    def content_format(self, chat_template: str | None = None) -> Literal["string", "openai"]:
        """How the template reads a message's content: as text, or as a list of parts."""
        if self.bundle.content_format != "auto":
            return self.bundle.content_format
        source = chat_template or self.bundle.chat_template
        return "openai" if source is not None and _reads_parts(source) else "string"

    def prompt_token_ids(
        self,
        prompt: str | list[int],
        *,
        add_special_tokens: bool | None = None,
        cache_salt: str | None = None,
    ) -> list[int]:
        """A text-completion prompt as token ids. Raises `ValidationError` when it is empty."""
        if isinstance(prompt, str):
            special = add_special_tokens is not False
            begun = self.begin(prompt, add_special_tokens=special, cache_salt=cache_salt)
            token_ids = begun.token_ids()
        else:
            token_ids = prompt
        if not token_ids:
            raise ValidationError("prompt cannot be empty", parameter="prompt")
        return token_ids


def _effort_kwargs(effort: str | None) -> dict[str, Any]:
    """What templates read of `reasoning_effort`: by that name, or as a switch."""
    if effort is None:
        return {}
    return {"reasoning_effort": effort} | ({"enable_thinking": False} if effort == "none" else {})


def _marked(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with a mark at the end of its (last) text."""
    content = message.get("content")
    if isinstance(content, list) and content:
        last = content[-1] | {"text": content[-1].get("text", "") + _CONTINUED}
        return {**message, "content": [*content[:-1], last]}
    return {**message, "content": (content or "") + _CONTINUED}


def _cut_at_mark(text: str) -> str:
    """`text` up to the mark; a template that trims the message would have trimmed it before it."""
    end = text.rfind(_CONTINUED.rstrip())
    if end < 0:
        raise ValidationError(
            "the chat template leaves out the end of the final message, so it cannot be continued",
            parameter="continue_final_message",
        )
    return text[:end] if text.startswith(_CONTINUED, end) else text[:end].rstrip()


@functools.lru_cache(maxsize=16)
def _reads_parts(source: str) -> bool:
    """Whether the template loops over the content of messages."""
    try:
        tree = jinja2.Environment(extensions=[jinja2.ext.loopcontrols, _Generation]).parse(source)
    except _COMPILE_FAILURES:
        return False  # compiling it will say what is wrong
    return any(_is_content(loop.iter) for loop in tree.find_all(jinja2.nodes.For))


def _is_content(node: jinja2.nodes.Node) -> bool:
    if isinstance(node, jinja2.nodes.Filter) and node.node is not None:
        return _is_content(node.node)
    if isinstance(node, jinja2.nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, jinja2.nodes.Getitem):
        return isinstance(node.arg, jinja2.nodes.Const) and node.arg.value == "content"
    return isinstance(node, jinja2.nodes.Name) and node.name == "content"


@functools.lru_cache(maxsize=16)
def _compile_template(source: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[jinja2.ext.loopcontrols, _Generation],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except _COMPILE_FAILURES as error:
        raise ConfigError(f"the chat template does not compile: {error}") from error


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks for training what the assistant said; here it
    is only its body.
    """

    tags = {"generation"}  # noqa: RUF012  # jinja's declaration

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Unlike jinja's own filter: no HTML escapes, which would reach the model as text.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
