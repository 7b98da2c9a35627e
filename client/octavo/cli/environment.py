"""Environment variables of vLLM: which ones count here, and what becomes of the others."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from octavo_protocol.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Variable:
    """effect: what it does here; None: nothing, for the reason given."""

    effect: str | None
    reason: str = ""


def _same(*names: str, reason: str) -> dict[str, Variable]:
    return {name: Variable(None, reason) for name in names}


VARIABLES: dict[str, Variable] = {
    "VLLM_API_KEY": Variable("as --api-key"),
    "VLLM_LOGGING_LEVEL": Variable("as --log-level"),
    "VLLM_CPU_KVCACHE_SPACE": Variable("as --kv-cache-memory-bytes, in GiB"),
    "VLLM_CACHE_ROOT": Variable("models are cached in its folder `octavo`, without OCTAVO_CACHE"),
    "VLLM_SERVER_DEV_MODE": Variable("1: routes that stop, empty and inspect the engine exist"),
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": Variable("as --allow-runtime-lora-updating"),
    "VLLM_SKIP_MODEL_NAME_VALIDATION": Variable("1: requests may name any model"),
    "VLLM_MAX_COMPLETION_PROMPTS": Variable("most prompts in one completions request (1024)"),
    "VLLM_MAX_NUM_BAD_WORDS": Variable("most bad words of one request (128)"),
    "VLLM_MAX_N_SEQUENCES": Variable("largest n of a request (16384)"),
    "VLLM_MAX_STOP_STRINGS": Variable("most stop strings of one request (4)"),
    "VLLM_ENABLE_RESPONSES_API_STORE": Variable("1: /v1/responses keeps answers"),
    **_same(
        *("VLLM_HOST_IP", "VLLM_PORT", "VLLM_LOOPBACK_IP"),
        reason="an internal address of vLLM's processes; the server's are --host and --port",
    ),
    **_same(
        *("VLLM_CONFIGURE_LOGGING", "VLLM_LOGGING_CONFIG_PATH", "VLLM_LOGGING_PREFIX"),
        *("VLLM_LOG_STATS_INTERVAL", "VLLM_REQUEST_BODY_LOG_LEVEL", "VLLM_LOGGING_STREAM"),
        reason="logs are JSON lines on standard error; statistics are at /metrics",
    ),
    **_same("VLLM_CPU_OMP_THREADS_BIND", reason="use --threads, and taskset to bind them"),
    **_same(
        *("VLLM_USE_V1", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_WORKER_MULTIPROC_METHOD"),
        *("VLLM_USE_RUST_FRONTEND", "VLLM_USE_V2_MODEL_RUNNER", "VLLM_ATTENTION_BACKEND"),
        *("VLLM_NO_USAGE_STATS", "VLLM_DO_NOT_TRACK", "VLLM_CONFIG_ROOT", "VLLM_PLUGINS"),
        *("VLLM_TORCH_PROFILER_DIR", "VLLM_USE_MODELSCOPE", "VLLM_BATCH_INVARIANT"),
        reason="it chooses between parts of vLLM",
    ),
    **_same(
        *("VLLM_ENGINE_READY_TIMEOUT_S", "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"),
        *("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE"),
        reason="the limit is fixed here",
    ),
    **_same(
        *("VLLM_IMAGE_FETCH_TIMEOUT", "VLLM_VIDEO_FETCH_TIMEOUT", "VLLM_AUDIO_FETCH_TIMEOUT"),
        *("VLLM_MAX_AUDIO_CLIP_FILESIZE_MB", "VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB"),
        *("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "VLLM_MAX_IMAGE_PIXELS"),
        reason="models here read text only",
    ),
    **_same(
        *("VLLM_LORA_RESOLVER_CACHE_DIR",),
        *("VLLM_NIXL_SIDE_CHANNEL_HOST", "VLLM_NIXL_SIDE_CHANNEL_PORT"),
        *("VLLM_MOONCAKE_BOOTSTRAP_PORT", "VLLM_ENABLE_COHERE_API"),
        *("VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES", "VLLM_HTTP_MAX_REQUEST_BODY_SIZE"),
        *("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "VLLM_ENFORCE_STRICT_TOOL_CALLING"),
        reason="what it sets is not there yet",
    ),
}
_LEVELS = {"warn": "warning", "critical": "error", "fatal": "error", "notset": "debug"}
_GROUPS = ("VLLM_DP_",)


def defaults_from_vllm(environ: Mapping[str, str]) -> dict[str, str]:
    """Defaults of parameters, from VLLM_ variables. Flags and OCTAVO_ variables go before them.

    Raises `ConfigError` for a size that is none.
    """
    defaults: dict[str, str] = {}
    if key := environ.get("VLLM_API_KEY"):
        defaults["api_key"] = key
    if level := environ.get("VLLM_LOGGING_LEVEL", "").lower():
        defaults["log_level"] = _LEVELS.get(level, level)
    if space := environ.get("VLLM_CPU_KVCACHE_SPACE", ""):
        try:
            size = int(float(space) * 2**30)
        except (ValueError, OverflowError) as error:
            raise ConfigError(
                f"VLLM_CPU_KVCACHE_SPACE must be a number of GiB, as 4; not {space!r}"
            ) from error
        if size > 0:  # 0 is vLLM's word for "choose"
            defaults["kv_cache_memory_bytes"] = str(size)
    return defaults


def warnings_about(environ: Mapping[str, str]) -> list[str]:
    """One line for each VLLM_ variable that is set and changes nothing."""
    lines = []
    for name in sorted(environ):
        if not name.startswith("VLLM_") or name.startswith(_GROUPS):
            continue
        variable = VARIABLES.get(name)
        if variable is None:
            near = difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0.8)
            hint = f"; did you mean {near[0]}?" if near else ""
            lines.append(f"there is no variable {name}{hint}")
        elif variable.effect is None:
            lines.append(f"{name} has no effect: {variable.reason}")
    return lines
