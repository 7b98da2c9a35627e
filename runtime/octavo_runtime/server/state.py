"""What the routes of one replica share."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from octavo_protocol.asgi import Message
from octavo_protocol.errors import NotFoundError, UnavailableError, ValidationError
from octavo_protocol.spans import Tracing
from octavo_runtime.engine.async_llm import AsyncLLM
from octavo_runtime.engine.messages import EngineInfo, PoolingInfo
from octavo_runtime.engine.scoring import refuse_unscored
from octavo_runtime.server.fingerprint import fingerprint
from octavo_runtime.server.metrics import ServerMetrics
from octavo_runtime.server.options import ApiOptions
from octavo_runtime.server.reasoning_parsers import ReasoningParser, reasoning_parser
from octavo_runtime.server.tool_parsers import ToolParser, tool_parser

_MAX_NAMES_TOLD = 32
_ROUTES = {
    "embed": "/v1/embeddings",
    "classify": "/classify or /score",
    "token_embed": "/pooling",
    "token_classify": "/pooling",
}
_MODELS = {
    "embed": "a model that embeds",
    "classify": "a classifier",
    "token_embed": "a model that embeds each token",
    "token_classify": "a classifier of tokens",
}


@dataclass(slots=True)
class ServerState:
    """is_registered: the cluster knows this replica (or there is none to know it).
    is_draining: no new work is taken; what runs is finished. is_paused: no new work is taken until
    somebody resumes. num_open: requests being answered; num_generating: those of them that
    generate. has_profiler: the engine can write profiles. has_adapters: those that the server was
    started with are loaded. default_max_tokens: longest chat answer
    where the request names none; None: what the context leaves. tool_parser and reasoning_parser:
    the classes that the options name. tracing: where spans go, if anywhere.

    Raises `ConfigError` for a parser that does not exist.
    """

    llm: AsyncLLM
    served_names: tuple[str, ...]
    max_body_bytes: int
    metrics: ServerMetrics
    options: ApiOptions = field(default_factory=ApiOptions)
    default_max_tokens: int | None = None
    is_registered: bool = False
    is_draining: bool = False
    is_paused: bool = False
    has_profiler: bool = False
    has_adapters: bool = True
    num_open: int = 0
    num_generating: int = 0
    tracing: Tracing | None = None
    tool_parser: type[ToolParser] | None = field(init=False, default=None)
    reasoning_parser: type[ReasoningParser] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.options.tool_call_parser:
            self.tool_parser = tool_parser(self.options.tool_call_parser)
        if self.options.reasoning_parser:
            self.reasoning_parser = reasoning_parser(self.options.reasoning_parser)

    @property
    def stage(self) -> str:
        """What the replica is doing, for /ready: "ready" when it may take traffic."""
        if not self.llm.is_healthy:
            return "engine stopped"
        if self.is_draining:
            return "draining"
        if self.is_paused:
            return "paused"
        if not self.llm.is_ready:
            return "loading"
        if not self.has_adapters:
            return "loading adapters"
        return "ready" if self.is_registered else "registering"

    @property
    def fingerprint(self) -> str | None:
        """`system_fingerprint` of answers."""
        dtype = self.llm.info.dtype if self.llm.info else "unknown"
        return fingerprint(self.options, self.served_names[0], dtype)

    def set_registered(self) -> None:
        self.is_registered = True

    def answering(self, start: Message) -> None:
        """Counts an answer that begins."""
        self.metrics.responded(start["status"])

    async def pause(self, level: int, mode: str) -> None:
        """Takes no new work and puts the engine to sleep; see `EngineCore.sleep`.

        Raises `ValidationError` where the engine refuses.
        """
        was_paused, self.is_paused = self.is_paused, True
        try:
            await self.llm.sleep(level, mode)
        except BaseException:
            self.is_paused = was_paused
            raise

    async def resume(self, tags: Sequence[str] | None = None) -> None:
        """Wakes the engine, or the parts of it that `tags` name; awake, it takes work again.

        Raises `ValidationError` for unknown tags.
        """
        self.is_paused = not await self.llm.wake_up(tags)

    def check_runs(self) -> None:
        """Raises `UnavailableError` while there is no engine to talk to."""
        if not self.llm.is_ready:
            raise UnavailableError(f"the engine cannot be reached: {self.stage}")

    def check_accepts(self) -> EngineInfo:
        """Raises `UnavailableError` when no new work can be taken."""
        info = self.llm.info
        if info is None or self.is_draining or self.is_paused or not self.llm.is_healthy:
            raise UnavailableError(f"the server takes no requests now: {self.stage}")
        return info

    def check_generates(self) -> EngineInfo:
        """Raises `NotFoundError` where the model pools, `UnavailableError` as `check_accepts`."""
        info = self.check_accepts()
        if info.pooling is not None:
            raise NotFoundError(
                f"{self.served_names[0]!r} does not generate, it can "
                f"{_listed(info.pooling.tasks)}: use {_ROUTES[info.pooling.task]}, or a model that "
                "generates",
                parameter="model",
                code="task_not_supported",
            )
        return info

    def check_pools(self, *tasks: str) -> PoolingInfo:
        """Raises `NotFoundError` where the model can none of `tasks`, `UnavailableError` as
        `check_accepts`.
        """
        pooling = self.check_accepts().pooling
        can = ["generate"] if pooling is None else pooling.tasks
        if pooling is None or not set(tasks) & set(can):
            raise NotFoundError(
                f"{self.served_names[0]!r} cannot {_listed(tasks)}, it can {_listed(can)}: this "
                f"route needs {_MODELS[tasks[0]]}, or --runner pooling where a model can be either",
                parameter="model",
                code="task_not_supported",
            )
        return pooling

    def check_scores(self) -> PoolingInfo:
        """As `check_pools`. Raises `ValidationError` for a classifier of several classes."""
        pooling = self.check_pools("embed", "classify", "token_embed")
        refuse_unscored(pooling.scoring, pooling.tasks, len(pooling.labels))
        return pooling

    def check_model(self, name: str | None) -> str:
        """The name, of the model or an adapter, that a request means. Raises `NotFoundError`."""
        if not name:
            return self.served_names[0]
        is_known = name in self.served_names or name in self.llm.adapters.book
        if not is_known and not self.options.skip_model_name_validation:
            names = [*self.served_names, *(each.name for each in self.llm.adapters.book)]
            num_more = len(names) - _MAX_NAMES_TOLD
            raise NotFoundError(
                f"the model {name!r} does not exist; this server has "
                + ", ".join(repr(each) for each in names[:_MAX_NAMES_TOLD])
                + (f" and {num_more} more" if num_more > 0 else ""),
                parameter="model",
                code="model_not_found",
            )
        return name

    def adapter(self, name: str | None) -> str | None:
        """The adapter that a request for `name`, which was checked, is to use; None: the model
        itself. One that is unloaded meanwhile stays an adapter, and is missed by the engine.
        """
        if not name or name in self.served_names:
            return None
        is_any = self.options.skip_model_name_validation and name not in self.llm.adapters.book
        return None if is_any else name

    def check_adapter_name(self, name: str) -> None:
        """Raises `ValidationError` for a name that is the model's."""
        if name in self.served_names:
            raise ValidationError(
                f"{name!r} is a name of the model itself: give the adapter another one",
                parameter="lora_name",
            )


def _listed(tasks: Sequence[str]) -> str:
    return " or ".join(tasks)
