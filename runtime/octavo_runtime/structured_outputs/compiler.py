"""Compiles grammars into matchers, in threads of its own, and remembers them.

A matcher walks one output; the ones kept here have seen no token and are only ever copied. Both
sides use this module: the API process to refuse what does not compile, the engine to run it.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from octavo_runtime.structured_outputs.grammar import refusal

# Bounds of one matcher: a lexer state takes 1 to 2 KB, fuel and items bound the time of a mask
# (tens of milliseconds at worst).
_LIMITS = LLParserLimits(max_lexer_states=50_000, max_grammar_size=200_000, verbose_errors=False)
# The library compiles rules that refer to rules by recursion. The longest chain that
# `MAX_GRAMMAR_CHARS` allows needs some 200 MiB of stack; pages that nobody touches cost nothing.
_STACK_BYTES = 512 * 2**20
_NUM_THREADS = 2
_MAX_LINE = 160
_MAX_CACHED = 256
_MAX_CACHED_CHARS = 4 * 2**20
_stack_size_lock = threading.Lock()


class GrammarCompiler:
    """Grammars of one tokenizer. Thread-safe.

    tokenizer_json: the content of tokenizer.json. vocab_size: columns of the logits, which may be
    more than the tokenizer has tokens. eos_token_ids: each may end a finished output.
    """

    def __init__(self, tokenizer_json: str, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self.vocab_size = vocab_size
        self._tokenizer_json = tokenizer_json
        self._eos_token_ids = list(eos_token_ids)
        self._tokenizer: LLTokenizer | None = None
        self._tokenizer_lock = threading.Lock()
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._futures: OrderedDict[str, Future[LLMatcher]] = OrderedDict()
        self._num_chars = 0

    def compile(self, grammar: str) -> "Future[LLMatcher]":
        """A pristine matcher, to be copied. Fails with `ValidationError` naming the cause."""
        with self._lock:
            future = self._futures.get(grammar)
            if future is None:
                if self._threads is None:
                    self._threads = _start_threads()
                future = self._futures[grammar] = self._threads.submit(self._compile, grammar)
                self._num_chars += len(grammar)
                self._evict()
            self._futures.move_to_end(grammar)
        return future

    def close(self) -> None:
        """Ends the threads once they are done with what they compile."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _compile(self, grammar: str) -> LLMatcher:
        tokenizer = self._load_tokenizer()
        try:
            matcher = LLMatcher(tokenizer, grammar, limits=_LIMITS, log_level=0)
            if not matcher.is_error():
                matcher.compute_bitmask()  # finds what goes wrong at the first token
        except BaseException as error:  # a panic of the library is no Exception
            raise refusal(f"the grammar cannot be compiled: {error}") from error
        if matcher.is_error():
            raise refusal(_cause(matcher.get_error()))
        return matcher

    def _load_tokenizer(self) -> LLTokenizer:
        with self._tokenizer_lock:
            if self._tokenizer is None:
                try:
                    self._tokenizer = LLTokenizer(
                        self._tokenizer_json,
                        n_vocab=self.vocab_size,
                        eos_token=self._eos_token_ids or None,
                    )
                except ValueError as error:
                    raise refusal(f"this model's tokenizer cannot be used: {error}") from error
            return self._tokenizer

    def _evict(self) -> None:
        while len(self._futures) > 1 and (
            len(self._futures) > _MAX_CACHED or self._num_chars > _MAX_CACHED_CHARS
        ):
            grammar, _ = self._futures.popitem(last=False)
            self._num_chars -= len(grammar)


def _start_threads() -> ThreadPoolExecutor:
    """Threads with deep stacks, all started: the size is what holds when a thread starts."""
    with _stack_size_lock:
        before = threading.stack_size(_STACK_BYTES)
        try:
            threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="grammar")
            barrier = threading.Barrier(_NUM_THREADS + 1)
            for _ in range(_NUM_THREADS):
                threads.submit(barrier.wait)
            barrier.wait()
        finally:
            threading.stack_size(before)
    return threads


def _cause(message: str) -> str:
    """The library's message in few words: no dump of the parser's state, no long quotes."""
    lines = message.partition("<state>")[0].partition("<non-verbose/>")[0].strip().splitlines()
    if lines[:1] and lines[0].startswith("NoExtension"):
        return "no output can satisfy it"
    if lines[:1] and lines[0].startswith("oneOf"):
        return "oneOf with alternatives that may hold at once is not supported: write anyOf"
    return "\n".join(
        line if len(line) <= _MAX_LINE else f"{line[:_MAX_LINE]}..." for line in lines[:10]
    )
