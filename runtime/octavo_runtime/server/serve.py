"""One replica from start to stop: the engine process, the HTTP server, the presence in Redis."""

import asyncio
import logging
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import uvloop

from octavo_protocol.errors import ConfigError, OctavoError
from octavo_protocol.http_options import HttpOptions
from octavo_protocol.keys import Keys
from octavo_protocol.logs import configure_logging
from octavo_protocol.records import ReplicaRecord
from octavo_protocol.sampling_params import SamplingParams
from octavo_protocol.serving import DrainingServer, open_socket
from octavo_protocol.tokenizer import Tokenizer, TokenizerBundle
from octavo_protocol.tracing import open_tracing
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.async_llm import ENGINE_CORE, AsyncLLM
from octavo_runtime.engine.start_up import start_up_line
from octavo_runtime.server.app import create_app
from octavo_runtime.server.lora_modules import LoRAModule, adapters_of_record, load_modules
from octavo_runtime.server.metrics import ServerMetrics
from octavo_runtime.server.options import ApiOptions
from octavo_runtime.server.plugins import load_plugin
from octavo_runtime.server.registration import Registration
from octavo_runtime.server.state import ServerState

logger = logging.getLogger(__name__)

_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ApiOptions, HttpOptions):
    """Settings of one replica.

    port: 0 = any free one. advertise_url: how the router reaches this replica; None = host and
    port. chat_template: file with a template instead of the model's own. tokenizer: folder of the
    tokenizer where it is not the model's. lora_modules: adapters to load at the start.
    default_sampling_params: of requests that bring none; None = the model's. core_factory: what
    runs in the engine process.
    """

    model: Path
    served_names: tuple[str, ...]
    engine: EngineConfig
    redis_url: str | None = None
    namespace: str = "default"
    deployment: str = "default"
    replica_id: str = "replica"
    advertise_url: str | None = None
    drain_timeout_s: float = 30.0
    max_body_bytes: int = 16 * 2**20
    chat_template: Path | None = None
    tokenizer: Path | None = None
    lora_modules: tuple[LoRAModule, ...] = ()
    default_sampling_params: SamplingParams | None = None
    log_level: str = "info"
    core_factory: str = ENGINE_CORE


def run_replica(options: ServeOptions) -> None:
    """Serves until SIGTERM or SIGINT, then drains. Raises `ConfigError` when it cannot start.

    Exits with status 1 when the engine dies.
    """
    configure_logging(options.log_level)
    sock = open_socket(options)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            is_clean = runner.run(_Replica(options, sock).run())
    finally:
        sock.close()
        if options.uds is not None:
            options.uds.unlink(missing_ok=True)
    if not is_clean:
        raise SystemExit(1)


def start_llm(options: ServeOptions) -> AsyncLLM:
    """Starts the engine process that the options ask for, with their tokenizer and defaults.

    Returns at once. Raises `ConfigError`.
    """
    if options.tool_parser_plugin:
        load_plugin(options.tool_parser_plugin)
    tokenizer = Tokenizer(_bundle(options))
    llm = AsyncLLM.start(options.engine, tokenizer, core_factory=options.core_factory)
    llm.default_sampling_params = options.default_sampling_params or llm.default_sampling_params
    return llm


def server_state(options: ServeOptions, llm: AsyncLLM) -> ServerState:
    """What the routes share. Raises `ConfigError` for a parser that does not exist."""
    given = llm.default_sampling_params.max_tokens
    return ServerState(
        llm=llm,
        served_names=options.served_names,
        max_body_bytes=options.max_body_bytes,
        metrics=ServerMetrics(llm, options, model=options.served_names[0]),
        options=options,
        # 16 is what parameters say where no model does; a chat may then fill the context.
        default_max_tokens=None if given == SamplingParams().max_tokens else given,
        is_registered=options.redis_url is None,
        has_profiler=options.engine.profiler_dir is not None,
        has_adapters=not options.lora_modules,
    )


class _Replica:
    def __init__(self, options: ServeOptions, sock: socket.socket) -> None:
        self._options = options
        self._sock = sock
        self._address = str(options.uds or f"port {sock.getsockname()[1]}")
        self._started = time.monotonic()

    async def run(self) -> bool:
        """True after a graceful stop, False when the engine died."""
        options = self._options
        registration = self._registration()
        llm = start_llm(options)
        try:
            state = server_state(options, llm)
            state.tracing = open_tracing(options.otlp_traces_endpoint, "octavo-replica")
            server = DrainingServer(create_app(state, options), options)
        except ConfigError:
            await llm.shutdown()
            raise
        serving = asyncio.create_task(server.serve(sockets=[self._sock]))
        stop = asyncio.create_task(server.stop_requested.wait())
        ready = asyncio.create_task(self._become_ready(state, registration))
        try:
            while not stop.done():
                if ready.done():
                    ready.result()  # raises when the engine did not start
                if llm.info is not None and not llm.is_healthy:
                    break
                await asyncio.wait({stop, serving}, timeout=_POLL_S)
            is_clean = llm.is_healthy
            state.is_draining = True
            if registration is not None:
                registration.refresh()
            await self._drain(state, server)
            return is_clean
        finally:
            ready.cancel()
            stop.cancel()
            if registration is not None:
                await registration.stop()
            server.should_exit = True
            # The engine first: what did not finish in time ends with an error, not with silence.
            await llm.shutdown()
            await asyncio.gather(serving, ready, stop, return_exceptions=True)
            if state.tracing is not None:
                await asyncio.to_thread(state.tracing.close)

    async def _become_ready(self, state: ServerState, registration: Registration | None) -> None:
        info = await state.llm.wait_ready()
        await load_modules(state, self._options.lora_modules)
        if registration is not None:
            state.llm.on_kv_events(registration.on_kv_events)
            state.llm.adapters.book.on_change = registration.refresh
            registration.start(
                lambda incarnation: self._record(state, incarnation), state.set_registered
            )
            while not state.is_registered:
                await asyncio.sleep(_POLL_S)
        logger.info(
            "%s on %s %s",
            ", ".join(state.served_names),
            self._address,
            start_up_line(info, time.monotonic() - self._started),
        )

    async def _drain(self, state: ServerState, server: DrainingServer) -> None:
        deadline = time.monotonic() + self._options.drain_timeout_s
        while state.num_open and time.monotonic() < deadline and not server.stop_now:
            await asyncio.sleep(_POLL_S)
        if state.num_open:
            logger.warning("%d requests did not finish in time", state.num_open)

    def _registration(self) -> Registration | None:
        options = self._options
        if options.redis_url is None:
            return None
        if options.uds is not None and options.advertise_url is None:
            raise ConfigError("--uds with --redis-url needs --advertise-url, for routers")
        keys = Keys(options.namespace, options.deployment)
        return Registration(options.redis_url, keys, options.replica_id)

    def _record(self, state: ServerState, incarnation: str) -> ReplicaRecord:
        options, info, stats = self._options, state.llm.info, state.llm.stats
        if info is None:
            raise OctavoError("a replica has no record before its engine is ready")
        return ReplicaRecord(
            replica_id=options.replica_id,
            incarnation=incarnation,
            url=bracketed(options.advertise_url) if options.advertise_url else self._url(),
            model=options.served_names[0],
            served_names=list(options.served_names),
            cache_model=info.cache_model,
            block_size=info.block_size,
            num_blocks=info.num_blocks,
            max_model_len=info.max_model_len,
            running=stats.running,
            waiting=stats.waiting,
            waiting_tokens=stats.waiting_tokens,
            background_running=stats.background_running,
            background_waiting=stats.background_waiting,
            background_waiting_tokens=stats.background_waiting_tokens,
            kv_usage=stats.kv_usage,
            prefill_tokens_per_s=stats.prefill_tokens_per_s,
            decode_tokens_per_s=stats.decode_tokens_per_s,
            draining=state.is_draining,
            ready=state.llm.is_ready,
            tokenizer_id=state.llm.tokenizer.id,
            max_num_seqs=info.max_num_seqs,
            prefix_hit_tokens=stats.prefix_hit_tokens_total,
            takes_prompt_tokens=True,
            **adapters_of_record(state.llm),
        )

    def _url(self) -> str:
        """Where routers of the same machine or network reach this replica."""
        options = self._options
        scheme = "https" if options.ssl_certfile else "http"
        host = "127.0.0.1" if options.host in ("0.0.0.0", "::", "") else options.host
        host = f"[{host}]" if ":" in host else host
        return f"{scheme}://{host}:{self._sock.getsockname()[1]}"


def bracketed(url: str) -> str:
    """`url` with brackets around an IPv6 address, which Kubernetes gives without them.

    http://fd00::1:8000 becomes http://[fd00::1]:8000: what follows the last colon is the port.
    """
    scheme, separator, rest = url.partition("://")
    host, _, port = rest.rpartition(":")
    if ":" not in host or host.startswith("["):
        return url
    return f"{scheme}{separator}[{host}]:{port}"


def _bundle(options: ServeOptions) -> TokenizerBundle:
    bundle = TokenizerBundle.from_folder(options.tokenizer or options.model)
    bundle.default_chat_template_kwargs = options.default_chat_template_kwargs
    bundle.content_format = options.chat_template_content_format
    bundle.exclude_tools_when_tool_choice_none = options.exclude_tools_when_tool_choice_none
    path = options.chat_template
    if path is not None:
        try:
            bundle.chat_template = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    return bundle
