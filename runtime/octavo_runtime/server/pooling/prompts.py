"""From the inputs of a request to the prompts of the engine, a bounded number at a time."""

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from octavo_protocol.errors import ValidationError
from octavo_protocol.openai import ChatMessage, TokenizeRequest
from octavo_protocol.openai.pooling import InputRequest, PoolingRequest
from octavo_protocol.openai.scoring import PairRequest
from octavo_protocol.text_encoding import EncodedPrompt, Truncation, encode_texts
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.engine.scoring import PairOptions, pair_prompt, pair_template
from octavo_runtime.server.requests import INLINE_CHARS, check_template, maybe_in_thread
from octavo_runtime.server.state import ServerState

# Inputs that are tokenized at once: what comes after them waits until the engine has room.
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a request's inputs. name: of the inputs, in complaints. sizes: of each, in
    characters or tokens. encode: makes the prompts of the inputs [start, stop).
    """

    name: str
    sizes: Sequence[int]
    encode: Callable[[int, int], list[EncodedPrompt]]

    async def each(self) -> AsyncGenerator[EncodedPrompt, None]:
        """One after the other. Raises `ValidationError` that names the input."""
        for start in range(0, len(self.sizes), _BATCH):
            stop = min(start + _BATCH, len(self.sizes))
            size = sum(self.sizes[start:stop])
            for prompt in await maybe_in_thread(size, partial(self._encoded, start, stop)):
                yield prompt

    def complaint(self, index: int, error: ValidationError) -> ValidationError:
        """`error`, which the input at `index` caused, with its place."""
        place = f"{self.name}[{index}]: " if len(self.sizes) > 1 else ""
        parameter = self.name if error.parameter in (None, "prompt") else error.parameter
        return ValidationError(place + error.message, parameter=parameter, code=error.code)

    def _encoded(self, start: int, stop: int) -> list[EncodedPrompt]:
        try:
            return self.encode(start, stop)
        except ValidationError as error:
            if stop - start == 1:
                raise self.complaint(start, error) from error
        return [each for i in range(start, stop) for each in self._encoded(i, i + 1)]


def input_prompts(state: ServerState, request: InputRequest) -> Prompts:
    """The prompts of text, token ids and conversations. Raises `ValidationError`."""
    check_template(state, request)
    inputs, tokenizer = request.inputs(), state.llm.tokenizer
    truncation = truncation_of(state, request)

    def encode(start: int, stop: int) -> list[EncodedPrompt]:
        batch = inputs[start:stop]
        texts = [each for each in batch if isinstance(each, str)]
        encoded = _texts(tokenizer, texts, truncation, request.add_special_tokens)
        return [
            EncodedPrompt(next(encoded))
            if isinstance(each, str)
            else EncodedPrompt(_other(tokenizer, request, each, truncation))
            for each in batch
        ]

    return Prompts("input" if request.input is not None else "messages", _sizes(inputs), encode)


def text_prompts(
    state: ServerState, name: str, texts: Sequence[str], truncation: Truncation
) -> Prompts:
    """The prompts of texts alone."""

    def encode(start: int, stop: int) -> list[EncodedPrompt]:
        encoded = _texts(state.llm.tokenizer, texts[start:stop], truncation, True)
        return [EncodedPrompt(token_ids) for token_ids in encoded]

    return Prompts(name, _sizes(texts), encode)


def pair_prompts(
    state: ServerState, request: PairRequest, pairs: Sequence[tuple[str, str]]
) -> Prompts:
    """The prompts of a cross-encoder. Raises `ValidationError`."""
    check_template(state, request)
    tokenizer = state.llm.tokenizer
    options = _pair_options(state, request)

    def encode(start: int, stop: int) -> list[EncodedPrompt]:
        return [
            pair_prompt(tokenizer, query, document, options)
            for query, document in pairs[start:stop]
        ]

    return Prompts("pair", [len(query) + len(text) for query, text in pairs], encode)


def truncation_of(state: ServerState, request: PoolingRequest) -> Truncation:
    """What the request asks for; -1 is all that the model takes."""
    limit = request.truncate_prompt_tokens
    if limit == -1:
        limit = state.check_accepts().max_model_len
    return Truncation(limit, request.truncation_side or "right")


def text_truncation(state: ServerState, request: PoolingRequest, max_tokens: int) -> Truncation:
    """Of a text with a limit of its own, without special tokens; 0: none."""
    truncation = truncation_of(state, request)
    if not max_tokens:
        return truncation
    limit = max_tokens + state.llm.tokenizer.backend.num_special_tokens_to_add(is_pair=False)
    return Truncation(min(limit, truncation.max_tokens or limit), truncation.side)


def _sizes(inputs: Sequence[str | list[int] | list[ChatMessage]]) -> list[int]:
    """A conversation counts as long: templates take their time."""
    return [
        INLINE_CHARS if isinstance(each, list) and isinstance(each[0], ChatMessage) else len(each)
        for each in inputs
    ]


def _texts(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    truncation: Truncation,
    add_special_tokens: bool | None,
) -> Iterator[list[int]]:
    special = add_special_tokens is not False
    return iter(encode_texts(tokenizer, texts, truncation, add_special_tokens=special))


def _other(
    tokenizer: Tokenizer,
    request: InputRequest,
    given: list[int] | list[ChatMessage],
    truncation: Truncation,
) -> list[int]:
    """The prompt of token ids, or of a conversation."""
    if not isinstance(given[0], ChatMessage):
        return truncation.tokens(given)
    chat = TokenizeRequest(
        messages=given,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        chat_template=request.chat_template,
        chat_template_kwargs=request.chat_template_kwargs,
    )
    special = bool(request.add_special_tokens)
    prompt = tokenizer.chat_prompt(chat)
    return encode_texts(tokenizer, [prompt], truncation, add_special_tokens=special)[0]


def _pair_options(state: ServerState, request: PairRequest) -> PairOptions:
    template = pair_template(state.llm.tokenizer, request.chat_template)
    kwargs = dict(request.chat_template_kwargs or {})
    if request.instruction is not None:
        kwargs["instruction"] = request.instruction
    if kwargs and template is None:
        raise ValidationError(
            "this model joins the texts without a template, which could read instruction and "
            "chat_template_kwargs: leave them out, or start the server with --chat-template",
            parameter="instruction" if request.instruction is not None else "chat_template_kwargs",
        )
    return PairOptions(
        chat_template=template,
        template_kwargs=kwargs,
        truncation=truncation_of(state, request),
        max_query_tokens=request.max_tokens_per_query or None,
        max_document_tokens=request.max_tokens_per_doc or None,
    )
