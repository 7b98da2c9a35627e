"""Engine arguments that vLLM no longer has, as what they mean today."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from octavo_protocol.deprecation import warn_former
from octavo_protocol.errors import ValidationError

# Removed, and without effect on any result: why.
_HARMLESS = {
    "swap_space": "a preempted sequence is computed again",
    "max_seq_len_to_capture": "graphs hold for contexts of any length",
    "max_context_len_to_capture": "graphs hold for contexts of any length",
    "disable_async_output_proc": "outputs are always processed beside the engine",
    "use_v2_block_manager": "there is one block manager",
    "num_lookahead_slots": "there is no speculation",
    "disable_log_requests": "requests are not logged offline",
    "preemption_mode": "a preempted sequence is computed again",
    "num_scheduler_steps": "the engine schedules every step",
    "multi_step_stream_outputs": "the engine schedules every step",
    "worker_use_ray": "nothing runs on Ray",
    "ray_workers_use_nsight": "nothing runs on Ray",
    "enable_prompt_adapter": "there are no prompt adapters",
}
_BACKENDS = ("guided_decoding_backend", "guided_decoding_disable_fallback")
# What `task` once said, by today's arguments.
_TASKS: dict[str, dict[str, str]] = {
    "auto": {},
    "generate": {"runner": "generate"},
    "embed": {"runner": "pooling", "convert": "embed"},
    "embedding": {"runner": "pooling", "convert": "embed"},
    "classify": {"runner": "pooling", "convert": "classify"},
    "score": {"runner": "pooling"},
    "reward": {"runner": "pooling"},
}
# Fields that `PoolerConfig` once had for what is now use_activation.
_ACTIVATIONS = ("normalize", "softmax", "activation")


def translated(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments under today's names, with a DeprecationWarning for each old one.

    Raises `ValidationError` for an old one's value that never was.
    """
    current = dict(arguments)
    for name in list(current):
        if name in _HARMLESS:
            del current[name]
            warn_former(f"{name} has no effect any more ({_HARMLESS[name]}); leave it out")
        elif name in _BACKENDS or name.startswith("guided_decoding_disable_"):
            _translate_guided(current, name)
        elif name in ("rope_scaling", "rope_theta"):
            value = current.pop(name)
            if value is not None:
                _add_override(current, name, value)
            warn_former(f"{name} is now hf_overrides={{{name!r}: ...}}")
        elif name == "task":
            heirs = arguments_of_task(current.pop(name))
            current = heirs | current
            shown = ", ".join(f"{key}={value!r}" for key, value in heirs.items())
            warn_former(f"task is now runner and convert: {shown or 'leave it out'}")
        elif name == "override_pooler_config":
            current["pooler_config"] = current.pop(name)
            warn_former("override_pooler_config is now pooler_config")
    pooler = current.get("pooler_config")
    if isinstance(pooler, Mapping) and any(name in pooler for name in _ACTIVATIONS):
        current["pooler_config"] = _with_activation(pooler)
    return current


def arguments_of_task(task: Any) -> dict[str, str]:
    """What `task=` means today. Raises `ValidationError` for one that vLLM never had."""
    if task not in _TASKS:
        raise ValidationError(
            f"task={task!r} is not known; it was one of {', '.join(_TASKS)}, and is runner and "
            "convert today",
            parameter="task",
        )
    return _TASKS[task]


def _with_activation(pooler: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with use_activation in place of its former names."""
    fields = dict(pooler)
    for name in _ACTIVATIONS:
        if name in fields:
            fields.setdefault("use_activation", fields.pop(name))
            warn_former(f"pooler_config's {name} is now use_activation")
    return fields


class EngineArgsMeta(type):
    """Reads former keywords before the constructor of a dataclass does."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Raises TypeError for a name that is not known, with the nearest one that is."""
        current = translated(kwargs)
        known = [each.name for each in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for name in current:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise TypeError(
                    f"{cls.__name__}() got an unexpected keyword argument {name!r}{hint}"
                )
        return super().__call__(*args, **current)


def _translate_guided(current: dict[str, Any], name: str) -> None:
    value = current.pop(name)
    if name == "guided_decoding_disable_any_whitespace":
        settings = {"disable_any_whitespace": bool(value)}
    elif name == "guided_decoding_disable_additional_properties":
        settings = {"disable_additional_properties": bool(value)}
    else:
        warn_former(
            f"{name} has no effect: one library serves all structured outputs; leave it out"
        )
        return
    given = current.get("structured_outputs_config") or {}
    if not isinstance(given, Mapping):
        raise ValidationError(
            f"give {name} as a field of structured_outputs_config", parameter=name
        )
    current["structured_outputs_config"] = settings | dict(given)
    warn_former(f"{name} is now a field of structured_outputs_config")


def _add_override(current: dict[str, Any], name: str, value: Any) -> None:
    overrides = current.get("hf_overrides") or {}
    if not isinstance(overrides, Mapping):
        raise ValidationError(f"set {name} in your hf_overrides function", parameter=name)
    current["hf_overrides"] = {name: value} | dict(overrides)
