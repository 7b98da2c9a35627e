"""What the routes of one replica share."""

from dataclasses import dataclass, field

from octavo_protocol.asgi import Message
from octavo_protocol.errors import NotFoundError, UnavailableError
from octavo_runtime.engine.async_llm import AsyncLLM
from octavo_runtime.engine.messages import EngineInfo
from octavo_runtime.server.metrics import ServerMetrics


@dataclass(slots=True)
class ServerState:
    """is_registered: the cluster knows this replica (or there is none to know it).
    is_draining: no new work is taken; what runs is finished.
    """

    llm: AsyncLLM
    served_names: tuple[str, ...]
    max_body_bytes: int
    metrics: ServerMetrics
    is_registered: bool = False
    is_draining: bool = False
    num_open: int = field(default=0)  # requests being answered

    @property
    def stage(self) -> str:
        """What the replica is doing, for /ready: "ready" when it may take traffic."""
        if not self.llm.is_healthy:
            return "engine stopped"
        if self.is_draining:
            return "draining"
        if not self.llm.is_ready:
            return "loading"
        return "ready" if self.is_registered else "registering"

    def set_registered(self) -> None:
        self.is_registered = True

    def answering(self, start: Message) -> None:
        """Counts an answer that begins."""
        self.metrics.responded(start["status"])

    def check_accepts(self) -> EngineInfo:
        """Raises `UnavailableError` when no new work can be taken."""
        info = self.llm.info
        if info is None or self.is_draining or not self.llm.is_healthy:
            raise UnavailableError(f"the server takes no requests now: {self.stage}")
        return info

    def check_model(self, name: str | None) -> str:
        """The served name that a request means. Raises `NotFoundError`."""
        if not name:
            return self.served_names[0]
        if name not in self.served_names:
            raise NotFoundError(
                f"the model {name!r} does not exist; this server has "
                + ", ".join(repr(each) for each in self.served_names),
                parameter="model",
                code="model_not_found",
            )
        return name
