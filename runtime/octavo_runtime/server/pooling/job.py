"""Running the prompts of a pooling request: many at once, counted, ended when the client leaves."""

import asyncio
import secrets
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from octavo_protocol.asgi import parse_body
from octavo_protocol.errors import ValidationError
from octavo_protocol.openai.pooling import PoolingRequest
from octavo_protocol.openai.pooling_answers import PoolingUsage
from octavo_protocol.overrides import RequestOverrides
from octavo_protocol.pooling import PoolingOutput, PoolingParams, PoolingRequestOutput
from octavo_protocol.text_encoding import EncodedPrompt
from octavo_runtime.engine.messages import PoolingInfo
from octavo_runtime.server.pooling.prompts import Prompts
from octavo_runtime.server.received import received
from octavo_runtime.server.state import ServerState

MAX_RESULT_BYTES = 2**26
_T = TypeVar("_T")
_R = TypeVar("_R", bound=PoolingRequest)


@dataclass(slots=True)
class PoolingJob:
    """One HTTP request's work for the engine. request_id: of the HTTP request; clients choose it,
    so the engine's ids get something random added. pooling: what the model can.
    """

    state: ServerState
    request_id: str
    request: PoolingRequest
    pooling: PoolingInfo
    num_tokens: int = 0
    num_bytes: int = 0

    @property
    def usage(self) -> PoolingUsage:
        """Of all prompts that have run."""
        return PoolingUsage(self.num_tokens, self.num_tokens)

    async def run(
        self,
        prompts: Prompts,
        params: PoolingParams,
        keep: Callable[[int, NDArray[np.float32]], _T],
    ) -> list[_T]:
        """What `keep` makes of each prompt's index and tensor, in order. The engine has only so
        many of them at a time that its next step is full.

        Raises what the first prompt that fails raises; the others are then aborted.
        """
        kept: dict[int, _T] = {}
        slots = asyncio.Semaphore(2 * self.state.check_accepts().max_num_seqs)

        async def run_one(index: int, prompt: EncodedPrompt) -> None:
            try:
                output = await self._encoded(prompt, params)
                kept[index] = keep(index, output.outputs.data)
            except ValidationError as error:
                raise prompts.complaint(index, error) from error
            finally:
                slots.release()

        self.state.num_generating += 1
        try:
            async with asyncio.TaskGroup() as group, aclosing(prompts.each()) as each:
                num_begun = 0
                async for prompt in each:
                    await slots.acquire()
                    group.create_task(run_one(num_begun, prompt))
                    num_begun += 1
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            self.state.num_generating -= 1
        return [kept[index] for index in range(num_begun)]

    async def _encoded(
        self, prompt: EncodedPrompt, params: PoolingParams
    ) -> PoolingRequestOutput[PoolingOutput]:
        """One prompt's output, counted."""
        output = None
        has_types = self.pooling.num_token_types > 1
        try:
            output = await self.state.llm.encode(
                prompt.token_ids,
                params,
                f"{self.request_id}-{secrets.token_hex(4)}",
                token_type_ids=prompt.token_type_ids or () if has_types else (),
                priority=self.request.priority,
                cache_salt=self.request.cache_salt or "",
                lora_request=self.state.adapter(self.request.model),
            )
        finally:
            self.state.metrics.pooled(output)
        self.num_tokens += len(output.prompt_token_ids)
        self.num_bytes += output.outputs.data.nbytes
        if self.num_bytes > MAX_RESULT_BYTES:
            raise ValidationError(
                f"the results up to here have more than {MAX_RESULT_BYTES // 4} numbers: send the "
                "inputs in several requests"
            )
        return output


def read(
    state: ServerState, request: Request, raw: bytes, overrides: RequestOverrides, kind: type[_R]
) -> _R:
    """The body `raw`, with a router's changes. Raises `ValidationError`."""
    return received(state, request, parse_body(raw, kind), overrides).body


def make_job(
    state: ServerState, request: Request, body: PoolingRequest, pooling: PoolingInfo
) -> PoolingJob:
    """The job of a request."""
    return PoolingJob(state, body.request_id or request.state.request_id, body, pooling)
