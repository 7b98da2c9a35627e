"""Routes that load and unload LoRA adapters, for operators and routers.

Whoever can call them decides which files the server reads and what names it answers to: they exist
only where that is switched on.
"""

from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import PlainTextResponse

from octavo_protocol.asgi import parse_body
from octavo_protocol.errors import ValidationError
from octavo_protocol.lora import LoRARequest
from octavo_protocol.openai.adapters import LoadLoRAAdapterRequest, UnloadLoRAAdapterRequest
from octavo_protocol.openapi import TEXT, ApiRoute, Content, Operation
from octavo_runtime.engine.adapters import check_room
from octavo_runtime.server.received import read_overridden
from octavo_runtime.server.state import ServerState

_T = TypeVar("_T")


class InvalidUserInputError(ValidationError):
    """A load or unload that cannot be done; vLLM's clients look for this type."""

    error_type = "InvalidUserInput"


class AdapterRoutes:
    """Loads and unloads over one `ServerState`."""

    def __init__(self, state: ServerState) -> None:
        self.state = state

    def routes(self) -> list[ApiRoute]:
        if not self.state.options.allow_runtime_lora_updating:
            return []
        done = {200: (Content(media_type=TEXT),)}
        load = Operation("Load a LoRA adapter.", (LoadLoRAAdapterRequest,), done, (400, 404, 503))
        unload = Operation("Unload one.", (UnloadLoRAAdapterRequest,), done, (400, 404))
        return [
            ApiRoute("/v1/load_lora_adapter", self.load, load, "POST"),
            ApiRoute("/v1/unload_lora_adapter", self.unload, unload, "POST"),
        ]

    async def load(self, request: Request) -> PlainTextResponse:
        raw, _ = await read_overridden(self.state, request)
        body = parse_body(raw, LoadLoRAAdapterRequest)
        await _told(self._load(body))
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload(self, request: Request) -> PlainTextResponse:
        raw, _ = await read_overridden(self.state, request)
        body = parse_body(raw, UnloadLoRAAdapterRequest)
        if not body.lora_name:
            raise InvalidUserInputError("lora_name must be given", parameter="lora_name")
        await self.state.llm.adapters.unload(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    async def _load(self, body: LoadLoRAAdapterRequest) -> None:
        check_room(self.state.check_accepts())
        if not body.lora_name or not body.lora_path:
            raise ValidationError("both lora_name and lora_path must be given")
        if body.is_3d_lora_weight:
            raise ValidationError(
                "is_3d_lora_weight: no model here has weights of three dimensions; leave it out",
                parameter="is_3d_lora_weight",
            )
        self.state.check_adapter_name(body.lora_name)
        adapters = self.state.llm.adapters
        known = adapters.book.get(body.lora_name)
        number = adapters.next_number() if known is None else known.request.lora_int_id
        wanted = LoRARequest(body.lora_name, number, body.lora_path, load_inplace=body.load_inplace)
        await adapters.load(wanted, revision=body.revision)


async def _told(work: Awaitable[_T]) -> _T:
    try:
        return await work
    except ValidationError as error:
        raise InvalidUserInputError(error.message, parameter=error.parameter) from error
