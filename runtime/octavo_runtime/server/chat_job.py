"""From a chat request to the job that the engine runs: prompt, parsers, forced formats."""

import json
from collections.abc import Sequence

from octavo_protocol.errors import ValidationError
from octavo_protocol.openai import ChatCompletionRequest
from octavo_protocol.openai.tools import NamedToolChoice, Tool
from octavo_protocol.overrides import PromptTokens
from octavo_protocol.sampling_params import RequestOutputKind, SamplingParams
from octavo_protocol.structured_outputs import StructuredOutputsParams
from octavo_protocol.tokenizer import RENDERING_SPEED, Tokenizer
from octavo_runtime.server.beam import beam_params
from octavo_runtime.server.generation import GenerationJob
from octavo_runtime.server.requests import (
    check_characters,
    check_copies,
    check_template,
    check_vocabulary,
    maybe_in_thread,
    params_of,
)
from octavo_runtime.server.state import ServerState
from octavo_runtime.server.tool_parsers import ToolParser, tool_parser


async def chat_job(
    state: ServerState,
    request: ChatCompletionRequest,
    prompt_tokens: PromptTokens | None = None,
    *,
    answer_id: str,
    request_id: str,
) -> GenerationJob:
    """Renders and tokenizes the conversation. `chat_deltas` runs the result.

    prompt_tokens: the tokens, where a router has made them with this server's tokenizer.

    Raises `ValidationError` for what this model or this server's settings do not allow,
    `UnavailableError` where the server takes no work.
    """
    info = state.check_generates()
    check_template(state, request)
    parser = parser_for(state, request)
    tokenizer = state.llm.tokenizer

    num_chars = sum(len(message.text()) for message in request.messages)
    prompt_text = await maybe_in_thread(
        num_chars // RENDERING_SPEED, lambda: tokenizer.chat_prompt(request)
    )
    check_characters(state, request, [prompt_text])
    if prompt_tokens is not None:
        [token_ids] = prompt_tokens.prompts(1)
        check_vocabulary(info.vocab_size, [token_ids], parameter="messages")
    else:
        special = bool(request.add_special_tokens)
        begun = tokenizer.begin(
            prompt_text, add_special_tokens=special, cache_salt=request.cache_salt
        )
        token_ids = await maybe_in_thread(begun.num_new_chars, begun.token_ids)
    params = params_of(state, request, default_max_tokens=state.default_max_tokens)
    if parser is not None:
        _constrain(params, parser, request)
        if params.structured_outputs is not None:
            params.structured_outputs = state.options.constraint(params.structured_outputs)
    token_ids = request.truncated(token_ids, info.max_model_len)
    check_copies(params, [token_ids])
    job = GenerationJob(
        answer_id=answer_id,
        request_id=request_id,
        prompts=[token_ids],
        prompt_texts=[prompt_text],
        params=params,
        priority=request.priority,
        cache_salt=request.cache_salt or "",
        shared_prefix=prompt_tokens.shared if prompt_tokens is not None else None,
        adapter=state.adapter(request.model),
        beam=beam_params(request, params, info),
        visible_special_ids=_special_ids(tokenizer, parser.markers if parser else ()),
    )
    if state.reasoning_parser is not None:
        reasoning = state.reasoning_parser(prompt_text)
        job.is_reasoning = reasoning.starts_in_reasoning
        job.reasoning_end_token_ids = tokenizer.encode(reasoning.end, add_special_tokens=False)
        job.visible_special_ids |= _special_ids(tokenizer, (reasoning.start, reasoning.end))
        # Where reasoning ends is counted in tokens, as they come.
        params.output_kind = RequestOutputKind.DELTA
    return job


def parser_for(state: ServerState, request: ChatCompletionRequest) -> type[ToolParser] | None:
    """What finds the calls in an answer to `request`; None where there cannot be any.

    Raises `ValidationError` where the server is not set up to find them.
    """
    choice = request.effective_tool_choice
    if choice == "none":
        return None
    if choice == "auto":
        if not state.options.enable_auto_tool_choice or state.tool_parser is None:
            raise ValidationError(
                'tool_choice "auto" needs a server that was started with '
                "--enable-auto-tool-choice and --tool-call-parser; "
                'here tool_choice can be "none", "required" or a named function',
                parameter="tool_choice",
            )
        return state.tool_parser
    return state.tool_parser or tool_parser("json")


def tools_for(request: ChatCompletionRequest) -> Sequence[Tool]:
    """The tools that may be called."""
    tools = request.tools or []
    choice = request.tool_choice
    if isinstance(choice, NamedToolChoice):
        return [tool for tool in tools if tool.function.name == choice.function.name]
    return tools


def _constrain(
    params: SamplingParams, parser: type[ToolParser], request: ChatCompletionRequest
) -> None:
    """Makes the output follow the calls' format: always where a call is forced, where tools are
    strict if one is free.
    """
    tools = tools_for(request)
    is_forced = request.effective_tool_choice != "auto"
    if is_forced:
        is_named = isinstance(request.tool_choice, NamedToolChoice)
        parallel = request.parallel_tool_calls and not is_named
        wanted = parser.forced_format(tools, parallel=parallel)
    elif (strict := parser.strict_format(tools)) is not None:
        wanted = strict
    else:
        return
    if params.structured_outputs is not None:
        if not is_forced:
            return  # the request's own format says what the whole answer is
        raise ValidationError(
            "a forced tool call decides the format of the answer: leave out response_format and "
            'structured_outputs, or set tool_choice to "auto"',
            parameter="tool_choice",
        )
    tag = {"type": "structural_tag", "format": wanted}
    params.structured_outputs = StructuredOutputsParams(structural_tag=json.dumps(tag))


def _special_ids(tokenizer: Tokenizer, markers: Sequence[str]) -> frozenset[int]:
    ids = (tokenizer.backend.token_to_id(marker) for marker in markers)
    return frozenset(i for i in ids if i is not None) & tokenizer.special_token_ids
