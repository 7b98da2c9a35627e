"""The API side: a request's `structured_outputs` as a grammar that is known to compile."""

import asyncio
from collections.abc import Sequence

from octavo_protocol.sampling_params import SamplingParams
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.structured_outputs.compiler import GrammarCompiler
from octavo_runtime.structured_outputs.grammar import refusal, to_grammar


class RequestGrammars:
    """Turns constraints into grammars. `tokenizer` None: constraints are refused."""

    def __init__(
        self, tokenizer: Tokenizer | None, vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        self._special_tokens: dict[str, int] = {}
        self._compiler: GrammarCompiler | None = None
        if tokenizer is not None:
            added = tokenizer.backend.get_added_tokens_decoder()
            self._special_tokens = {
                token.content: token_id for token_id, token in added.items() if token.special
            }
            self._compiler = GrammarCompiler(
                tokenizer.bundle.tokenizer_json, vocab_size, eos_token_ids
            )

    def grammar(self, params: SamplingParams) -> str:
        """The grammar of a request; "" for free text. Raises `ValidationError`. Blocks."""
        if params.structured_outputs is None:
            return ""
        compiler = self._compiler_or_refusal()
        grammar = to_grammar(params.structured_outputs, self._special_tokens)
        compiler.compile(grammar).result()
        return grammar

    async def grammar_async(self, params: SamplingParams) -> str:
        """The same, without blocking the event loop."""
        if params.structured_outputs is None:
            return ""
        compiler = self._compiler_or_refusal()
        grammar = await asyncio.to_thread(
            to_grammar, params.structured_outputs, self._special_tokens
        )
        # Shielded: other requests may wait for the same grammar.
        await asyncio.shield(asyncio.wrap_future(compiler.compile(grammar)))
        return grammar

    def close(self) -> None:
        if self._compiler is not None:
            self._compiler.close()

    def _compiler_or_refusal(self) -> GrammarCompiler:
        if self._compiler is None:
            raise refusal("the engine has no tokenizer, which structured outputs need")
        return self._compiler
