"""Adapters that a server is started with, and what it tells the cluster of all that it has."""

from collections.abc import Iterable
from typing import Any

import msgspec

from octavo_protocol.errors import ConfigError, OctavoError
from octavo_protocol.lora import LoRARequest
from octavo_runtime.engine.adapters import check_room
from octavo_runtime.engine.async_llm import AsyncLLM
from octavo_runtime.server.state import ServerState


class LoRAModule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """path: folder, hub name or URL. base_model_name: told as its parent; None: the model's."""

    name: str
    path: str
    base_model_name: str | None = None

    @classmethod
    def parse(cls, text: str) -> "LoRAModule":
        """From `name=path`, or JSON of the fields. Raises `ConfigError`."""
        if text.lstrip().startswith("{"):
            try:
                return msgspec.json.decode(text, type=cls)
            except msgspec.DecodeError as error:
                raise ConfigError(f"--lora-modules {text}: {error}") from error
        name, separator, path = text.partition("=")
        if not separator or not name or not path:
            raise ConfigError(
                f"--lora-modules {text}: write name=path, or JSON as "
                '{"name": "sql", "path": "./sql-adapter"}'
            )
        return cls(name, path)


async def load_modules(state: ServerState, modules: Iterable[LoRAModule]) -> None:
    """Loads all of them, in order. Raises `ConfigError` for the first that cannot be loaded."""
    adapters, info = state.llm.adapters, await state.llm.wait_ready()
    for module in modules:
        try:
            check_room(info)
            state.check_adapter_name(module.name)
            number = adapters.next_number()
            await adapters.load(
                LoRARequest(module.name, number, module.path, module.base_model_name)
            )
        except OctavoError as error:
            raise ConfigError(f"--lora-modules {module.name}: {error.message}") from error
    state.has_adapters = True


def adapters_of_record(llm: AsyncLLM) -> dict[str, Any]:
    """Those fields of `ReplicaRecord` that are about adapters."""
    room = llm.info.lora if llm.info is not None else None
    if room is None:
        return {}
    book = llm.adapters.book
    return {
        "adapters": [each.name for each in book],
        "loaded_adapters": [each.name for each in book if each.is_loaded],
        "adapter_versions": {each.name: each.version for each in book},
        "adapter_sources": {each.name: each.origin for each in book},
        "adapter_errors": dict(book.errors),
        "max_adapters": room.max_cpu_loras,
        "adapter_load_s": book.recent_load_s,
    }
