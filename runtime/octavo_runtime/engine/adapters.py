"""Adapters as the API side knows them: where each comes from, and what the engine has of it.

    known ──load──▶ loaded (in the engine's host memory) ──evicted by other loads──▶ known
                                                         ──unload──▶ forgotten

The engine forgets the least recently used adapters. Their names and sources stay known here, so one
that is asked for again is loaded again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from octavo_protocol.errors import AdapterNotFoundError, ValidationError
from octavo_protocol.lora import LoRARequest, adapter_identity
from octavo_protocol.records import AdapterError, adapter_origin
from octavo_runtime.engine.messages import EngineInfo

_WEIGHT_OF_NEWEST = 0.3
_MAX_ERRORS = 32


@dataclass(slots=True)
class KnownAdapter:
    """request: name, number and source. revision: of a hub's repository. version: names the files
    that were loaded last. is_loaded: the engine has them, as far as it has told.
    """

    request: LoRARequest
    revision: str | None
    version: str
    is_loaded: bool = True

    @property
    def name(self) -> str:
        return self.request.lora_name

    @property
    def identity(self) -> str:
        return adapter_identity(self.name, self.version)

    @property
    def origin(self) -> str:
        """As of `AdapterSource.origin`."""
        return adapter_origin(self.request.lora_path, self.revision)


class AdapterBook:
    """All adapters by name, and how their loads went. Makes no loads itself.

    num_loads, num_evictions, load_seconds: since the start. recent_load_s: what a load took lately,
    in seconds; 0 = none yet. errors: of the last few adapters that could not be loaded, by name.
    on_change: called when there is something new to tell.
    """

    def __init__(self) -> None:
        self.num_loads = 0
        self.num_evictions = 0
        self.load_seconds = 0.0
        self.recent_load_s = 0.0
        self.errors: dict[str, AdapterError] = {}
        self.on_change: Callable[[], None] = lambda: None
        self._known: dict[str, KnownAdapter] = {}

    def __iter__(self) -> Iterator[KnownAdapter]:
        return iter(self._known.values())

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def get(self, name: str) -> KnownAdapter | None:
        return self._known.get(name)

    def find(self, name: str) -> KnownAdapter:
        """Raises `AdapterNotFoundError`."""
        known = self._known.get(name)
        if known is None:
            raise AdapterNotFoundError(
                f"the LoRA adapter {name!r} cannot be found: load it first", parameter="lora_name"
            )
        return known

    def by_number(self, lora_int_id: int) -> KnownAdapter | None:
        return next((each for each in self if each.request.lora_int_id == lora_int_id), None)

    @property
    def numbers(self) -> set[int]:
        return {each.request.lora_int_id for each in self}

    def usable(self, request: LoRARequest) -> KnownAdapter | None:
        """What the engine has for `request`; None: it is to be loaded first.

        Raises `ValidationError` where the name means another source, or the number another name.
        """
        self.check(request)
        known = self._known.get(request.lora_name)
        if known is None or not known.is_loaded or request.load_inplace:
            return None
        return known

    def check(self, request: LoRARequest) -> None:
        """Raises `ValidationError` as `usable`."""
        known = self._known.get(request.lora_name)
        if known is not None and not request.load_inplace:
            if known.request.lora_path != request.lora_path:
                raise ValidationError(
                    f"the adapter {request.lora_name!r} was loaded from another lora_path: set "
                    "load_inplace to replace it, or give another lora_name",
                    parameter="lora_path",
                )
            return
        owner = self.by_number(request.lora_int_id)
        if owner is not None and owner.name != request.lora_name:
            raise ValidationError(
                f"lora_int_id {request.lora_int_id} belongs to the adapter {owner.name!r}: give "
                "each adapter a number of its own",
                parameter="lora_int_id",
            )

    def take(
        self, request: LoRARequest, revision: str | None, answer: Mapping[str, Any]
    ) -> KnownAdapter:
        """Notes a load that the engine has answered. answer: of its `load_adapter`."""
        lasting = msgspec.structs.replace(request, load_inplace=False)
        known = KnownAdapter(lasting, revision, answer["version"])
        self._known[known.name] = known
        self.errors.pop(known.name, None)
        for name in answer["evicted"]:
            if name != known.name and name in self._known:
                self._known[name].is_loaded = False
                self.num_evictions += 1
        seconds = float(answer["seconds"])
        share = _WEIGHT_OF_NEWEST if self.num_loads else 1.0
        self.recent_load_s += share * (seconds - self.recent_load_s)
        self.load_seconds += seconds
        self.num_loads += 1
        self.on_change()
        return known

    def note_error(self, request: LoRARequest, revision: str | None, message: str) -> None:
        """A load failed; what is known of the name stays."""
        name = request.lora_name
        self.errors.pop(name, None)
        self.errors[name] = AdapterError(adapter_origin(request.lora_path, revision), message)
        while len(self.errors) > _MAX_ERRORS:
            del self.errors[next(iter(self.errors))]
        self.on_change()

    def forget(self, name: str) -> None:
        self._known.pop(name, None)
        self.errors.pop(name, None)
        self.on_change()

    def compare(self, listed: Iterable[Mapping[str, Any]]) -> None:
        """Corrects what is loaded. listed: the engine's own list of its adapters."""
        versions = {each["name"]: each["version"] for each in listed}
        for known in self:
            known.is_loaded = versions.get(known.name) == known.version


def check_room(info: EngineInfo) -> None:
    """Raises `ValidationError` where the engine takes no adapters."""
    if info.lora is None:
        raise ValidationError(
            "this engine takes no LoRA adapters: start it with enable_lora=True (--enable-lora)",
            parameter="lora_request",
        )


def already_loaded(name: str) -> ValidationError:
    """For a load of a name that is known."""
    return ValidationError(
        f"the LoRA adapter {name!r} has already been loaded: set load_inplace to load it again in "
        "its place",
        parameter="lora_name",
    )
