"""Keywords that `SamplingParams` had once: translated, or refused with what to write instead."""

import difflib
from typing import Any

import msgspec

from octavo_protocol.deprecation import warn_former
from octavo_protocol.errors import ValidationError
from octavo_protocol.guided_names import GUIDED, WITHOUT_MEANING, translate_guided
from octavo_protocol.structured_outputs import StructuredOutputsParams

# Former keyword -> (values that mean nothing, what to write for the others).
_FORMER: dict[str, tuple[tuple[Any, ...], str]] = {
    "best_of": (
        (None,),
        "ask for that many with n and keep the best by their cumulative_logprob",
    ),
    "use_beam_search": ((None, False), "call LLM.beam_search(prompts, BeamSearchParams(...))"),
    "early_stopping": ((None, False), "call LLM.beam_search(prompts, BeamSearchParams(...))"),
    "length_penalty": ((None, 1.0), "call LLM.beam_search(prompts, BeamSearchParams(...))"),
    "logits_processors": (
        (None, []),
        "give the engine classes, LLM(logits_processors=[...]), and their settings per request in "
        "extra_args",
    ),
    "truncate_prompt_tokens": (
        (None,),
        "write generate(..., tokenization_kwargs={'truncate_prompt_tokens': ...})",
    ),
}


class SamplingParamsMeta(msgspec.StructMeta):
    """Reads former keywords before the constructor does."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.keys() <= cls.__annotations__.keys():
            kwargs = _translated(kwargs, list(cls.__annotations__))
        return super().__call__(*args, **kwargs)


def _translated(kwargs: dict[str, Any], known: list[str]) -> dict[str, Any]:
    """Raises `ValidationError` for a former keyword that asks for something, TypeError for none."""
    current = _without_guided_names(kwargs)
    for name in list(current):
        if name in known:
            continue
        value = current.pop(name)
        if name == "guided_decoding":
            if value is not None:
                current.setdefault("structured_outputs", value)
            warn_former("guided_decoding is now structured_outputs")
        elif name in _FORMER:
            neutral, instead = _FORMER[name]
            if value not in neutral and not (name == "best_of" and value == kwargs.get("n", 1)):
                raise ValidationError(
                    f"SamplingParams has no {name} any more: {instead}", parameter=name
                )
            warn_former(f"SamplingParams has no {name} any more; leave it out")
        else:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"SamplingParams() got an unexpected keyword argument {name!r}{hint}")
    return current


def _without_guided_names(kwargs: dict[str, Any]) -> dict[str, Any]:
    """guided_json and the like, which were fields of HTTP requests, as `structured_outputs`."""
    old = [name for name in kwargs if name in GUIDED or name in WITHOUT_MEANING]
    if not old:
        return dict(kwargs)
    try:
        current = translate_guided(kwargs)
    except ValueError as error:
        raise ValidationError(str(error), parameter="structured_outputs") from error
    constraint = current.get("structured_outputs")
    if isinstance(constraint, dict):
        current["structured_outputs"] = StructuredOutputsParams(**constraint)
    warn_former(f"{old[0]} is now structured_outputs=StructuredOutputsParams(...)")
    return current
