"""An engine without a model: the same calls as `AsyncLLM`, tokens from a script, events on demand.

`FakeLLM` repeats the prompt's tokens, or says `script` where given. Requests go through the real
`InputProcessor` and `OutputProcessor`, so limits, stop strings, n, logprobs and output kinds are
those of the engine.
"""

import asyncio
import math
import random
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import cast

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from octavo_protocol.errors import GenerationError, UnavailableError, ValidationError
from octavo_protocol.hashing import SharedPrefix
from octavo_protocol.outputs import RequestOutput
from octavo_protocol.pooling import PoolingOutput, PoolingParams, PoolingRequestOutput
from octavo_protocol.records import KVEvent
from octavo_protocol.sampling_params import SamplingParams
from octavo_protocol.tokenizer import Tokenizer, TokenizerBundle
from octavo_runtime.engine.async_adapters import AsyncAdapters, Wanted
from octavo_runtime.engine.async_llm import AsyncLLM
from octavo_runtime.engine.input_processor import InputProcessor
from octavo_runtime.engine.messages import (
    EngineInfo,
    EngineRequest,
    EngineStats,
    LoRAInfo,
    PoolingInfo,
    PoolingRequest,
    PoolingResult,
    SequenceOutput,
    StepOutputs,
    TokenLogprobs,
)
from octavo_runtime.engine.output_processor import OutputProcessor
from octavo_runtime.engine.output_so_far import OutputSoFar
from octavo_runtime.engine.pooling_requests import pooling_output, pooling_request
from tests.fakes.fake_adapters import FakeAdapters
from tests.fakes.fake_pooling import fake_tensor

MAX_MODEL_LEN = 64
_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def byte_tokenizer() -> Tokenizer:
    """One token per byte of UTF-8 (ids 0 to 255 in byte-level order), and `<eos>` as 256."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    return Tokenizer(TokenizerBundle(backend.to_str(), _TEMPLATE, {"eos_token": "<eos>"}))


class FakeLLM:
    """Stands in for `AsyncLLM`; cast it with `as_async_llm`.

    script: what every request is answered with, ended by an end-of-sequence token; None: the prompt
    again and again until max_tokens. gate: cleared, no request gets further tokens. pooling: it
    pools, with the tensors of `fake_tensor`; `pooled` are the requests that came. lora: room for
    adapters; a request with one is answered with its identity.
    """

    def __init__(
        self,
        *,
        script: str | None = None,
        is_loaded: bool = True,
        pooling: PoolingInfo | None = None,
        lora: LoRAInfo | None = None,
    ) -> None:
        self._pooling = pooling
        self._lora = lora
        self.engine_adapters = FakeAdapters(0 if lora is None else lora.max_cpu_loras)
        self.adapters = AsyncAdapters(
            self.engine_adapters.control, self.engine_adapters.max_adapters
        )
        self.tokenizer = byte_tokenizer()
        self.default_sampling_params = SamplingParams()
        self.info: EngineInfo | None = None
        self.stats = EngineStats()
        self.is_healthy = True
        self.script = script
        self.gate = asyncio.Event()
        self.gate.set()
        self.request_ids: list[str] = []
        self.requests: list[EngineRequest] = []
        self.pooled: list[PoolingRequest] = []
        self.most_at_once = 0
        self.controls: list[tuple[str, dict[str, object]]] = []
        self.is_asleep = False
        self.aborted: list[str] = []
        self._inputs: InputProcessor | None = None
        self._running: dict[str, asyncio.Event] = {}
        self._failure: Exception | None = None
        self._ending: set[str] = set()
        self._kv_callbacks: list[Callable[[list[KVEvent]], None]] = []
        self._step_callbacks: list[Callable[[StepOutputs], None]] = []
        if is_loaded:
            self.load()

    def as_async_llm(self) -> AsyncLLM:
        return cast(AsyncLLM, self)

    def load(self, max_model_len: int = MAX_MODEL_LEN) -> None:
        """The model is ready from now on."""
        self.info = EngineInfo(
            model="fake",
            cache_model="fake@1",
            dtype="float32",
            block_size=16,
            num_blocks=100,
            max_model_len=max_model_len,
            max_num_seqs=8,
            vocab_size=self.tokenizer.vocab_size,
            eos_token_ids=[self._eos],
            stages={"weights": 0.0},
            pooling=self._pooling,
            lora=self._lora,
        )
        self._inputs = InputProcessor(self.info, self.tokenizer)

    def die(self) -> None:
        """The engine process is gone; what runs fails at once."""
        self.is_healthy = False
        self._failure = GenerationError("the engine process ended with status -9")
        for woken in self._running.values():
            woken.set()

    @property
    def is_ready(self) -> bool:
        return self.info is not None and self.is_healthy

    @property
    def num_unfinished(self) -> int:
        return len(self._running)

    def on_kv_events(self, callback: Callable[[list[KVEvent]], None]) -> None:
        self._kv_callbacks.append(callback)

    def on_step(self, callback: Callable[[StepOutputs], None]) -> None:
        self._step_callbacks.append(callback)

    def publish(self, events: list[KVEvent]) -> None:
        """KV events as a step would report them."""
        for callback in self._kv_callbacks:
            callback(events)

    async def wait_ready(self) -> EngineInfo:
        if self.info is None:
            raise GenerationError("the fake engine was not loaded")
        return self.info

    async def generate(
        self,
        prompt_token_ids: list[int],
        sampling_params: SamplingParams,
        request_id: str,
        *,
        prompt_text: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        shared_prefix: SharedPrefix | None = None,
        reasoning_end_token_ids: Sequence[int] = (),
        is_reasoning: bool = False,
        visible_special_ids: Collection[int] = (),
        so_far: Sequence[OutputSoFar] = (),
        lora_request: Wanted = None,
    ) -> AsyncIterator[RequestOutput]:
        if self._inputs is None or not self.is_healthy:
            raise UnavailableError("the engine is not ready")
        async with self.adapters.using(lora_request) as adapter:
            pass
        children = self._inputs.process(
            request_id,
            prompt_token_ids,
            sampling_params,
            priority=priority,
            cache_salt=cache_salt,
            shared_prefix=shared_prefix,
            reasoning_end_token_ids=reasoning_end_token_ids,
            is_reasoning=is_reasoning,
            so_far=so_far,
        )
        for child in children:
            child.adapter = adapter
        self.requests += children
        if request_id in self._running:
            raise GenerationError(f"request id {request_id} is in use")
        outputs = OutputProcessor(self.tokenizer)
        outputs.add(request_id, children, sampling_params, prompt=prompt_text)
        self.request_ids.append(request_id)
        failed = self._running[request_id] = asyncio.Event()
        finished = False
        try:
            if so_far and (replayed := outputs.replay(request_id, so_far)) is not None:
                finished = replayed.finished
                yield replayed
            for position in range(self.info.max_model_len if self.info and not finished else 0):
                await self._next_step(failed)
                step = [
                    self._token(child, position + len(child.output_token_ids))
                    for child in children
                    if outputs.is_running(child.request_id)
                ]
                if request_id in self._ending:
                    step = [SequenceOutput(c.request_id, [], None, "abort") for c in children]
                for callback in self._step_callbacks:
                    callback(StepOutputs(step))
                for output in outputs.process(step).outputs:
                    finished = output.finished
                    yield output
                if finished:
                    return
        finally:
            del self._running[request_id]
            if not finished:
                self.aborted.append(request_id)

    async def encode(
        self,
        prompt_token_ids: Sequence[int],
        pooling_params: PoolingParams,
        request_id: str,
        *,
        token_type_ids: Sequence[int] = (),
        priority: int = 0,
        cache_salt: str = "",
        lora_request: Wanted = None,
    ) -> PoolingRequestOutput[PoolingOutput]:
        if self.info is None or not self.is_healthy:
            raise UnavailableError("the engine is not ready")
        request = pooling_request(
            self.info,
            request_id,
            prompt_token_ids,
            pooling_params,
            token_type_ids=token_type_ids,
            priority=priority,
            cache_salt=cache_salt,
        )
        assert self._pooling is not None
        async with self.adapters.using(lora_request) as request.adapter:
            pass
        self.pooled.append(request)
        failed = self._running[request_id] = asyncio.Event()
        self.most_at_once = max(self.most_at_once, len(self._running))
        try:
            await self._next_step(failed)
        except BaseException:
            self.aborted.append(request_id)
            raise
        finally:
            del self._running[request_id]
        data = fake_tensor(request.prompt_token_ids, request.params, self._pooling)
        result = PoolingResult(request_id, data.astype("<f4").tobytes(), list(data.shape))
        return pooling_output(request, result, 0.0, 0.1)

    async def reset_prefix_cache(self, reset_running_requests: bool = False) -> bool:
        self.controls.append(("reset_prefix_cache", {"with_running": reset_running_requests}))
        return True

    async def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """ "abort" ends what runs; "wait" awaits its end."""
        self.controls.append(("sleep", {"level": level, "mode": mode}))
        if mode == "abort":
            self._ending |= self._running.keys()
            for woken in self._running.values():
                woken.set()
        while mode == "wait" and self._running:
            await asyncio.sleep(0.005)
        self.is_asleep = True

    async def wake_up(self, tags: Sequence[str] | None = None) -> bool:
        self.controls.append(("wake_up", {"tags": tags}))
        self.is_asleep = False
        return True

    async def is_sleeping(self) -> bool:
        return self.is_asleep

    async def start_profile(self, prefix: str | None = None) -> None:
        raise ValidationError("profiling needs a profiler folder")

    async def stop_profile(self) -> str:
        raise ValidationError("no profile runs")

    async def shutdown(self) -> None:
        self.is_healthy = False

    @property
    def _eos(self) -> int:
        assert self.tokenizer.eos_token_id is not None
        return self.tokenizer.eos_token_id

    async def _next_step(self, failed: asyncio.Event) -> None:
        """Returns when the gate is open; raises when the engine died meanwhile."""
        await asyncio.sleep(0)
        if not self.gate.is_set():
            waits = [asyncio.create_task(event.wait()) for event in (self.gate, failed)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
        if self._failure is not None:
            raise self._failure

    def _token(self, child: EngineRequest, position: int) -> SequenceOutput:
        prompt, sampling = child.prompt_token_ids, child.sampling
        script = child.adapter or self.script
        if script is None:
            token = prompt[position % len(prompt)]
        else:
            said = [*self.tokenizer.encode(script), self._eos]
            token = said[min(position, len(said) - 1)]
        reason = None
        if token == self._eos and not sampling.ignore_eos:
            reason = "stop"
        elif position + 1 == sampling.max_tokens:
            reason = "length"
        logprobs = None
        num_top = sampling.logprobs
        if sampling.logprob_token_ids is not None:
            num_top = len(sampling.logprob_token_ids)
        if num_top is not None:
            logprobs = [self._logprobs(token, num_top, position)]
        scores = None
        if sampling.prompt_logprobs is not None and position == 0:
            num = sampling.prompt_logprobs
            scores = [self._logprobs(t, num, i) for i, t in enumerate(prompt[1:], 1)]
        return SequenceOutput(
            child.request_id, [token], logprobs, reason, new_prompt_logprobs=scores
        )

    def _logprobs(self, token: int, num_top: int, position: int) -> TokenLogprobs:
        """-0.5 for the token, then -1, -2, ...; -inf for the last of a whole vocabulary."""
        count = self.tokenizer.vocab_size if num_top == -1 else num_top
        others = random.Random(position).sample(range(200), min(count, 200))
        values = [-1.0 - rank for rank in range(len(others))]
        if num_top == -1:
            values[-1] = -math.inf
        return TokenLogprobs([token, *others], [-0.5, *values], 1)
