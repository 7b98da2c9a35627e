"""Arguments that `LLM.generate` once had, as what they mean today."""

from collections.abc import Mapping, Sequence
from typing import Any

from octavo_protocol.deprecation import warn_former
from octavo_protocol.guided_names import translate_guided
from octavo_protocol.sampling_params import SamplingParams
from octavo_protocol.structured_outputs import StructuredOutputsParams


def with_token_ids(prompts: Any, prompt_token_ids: Any) -> Any:
    """The prompts, from whichever keyword they came. Raises TypeError for none and for both."""
    if prompt_token_ids is None:
        if prompts is None:
            raise TypeError("generate() needs prompts")
        return prompts
    warn_former(
        "generate(prompt_token_ids=ids) is now generate(ids), or generate({'prompt_token_ids': "
        "ids})"
    )
    if prompts is not None:
        raise TypeError("give prompts or prompt_token_ids, not both")
    return prompt_token_ids


def with_guided_options(
    params: SamplingParams | Sequence[SamplingParams], guided: Any
) -> SamplingParams | list[SamplingParams]:
    """Copies of the parameters under the constraint `guided`.

    guided: `StructuredOutputsParams`, or a dict of its fields under these or the guided_* names.
    Raises `ValidationError` or TypeError for what is no constraint.
    """
    warn_former("guided_options_request is now SamplingParams(structured_outputs=...)")
    if isinstance(guided, Mapping):
        fields = translate_guided(guided)
        guided = StructuredOutputsParams(**(fields.pop("structured_outputs", {}) | fields))
    if isinstance(params, SamplingParams):
        return _constrained(params, guided)
    return [_constrained(each, guided) for each in params]


def warn_of_beam_search() -> None:
    """Says what `generate(prompts, BeamSearchParams)` is today."""
    warn_former(
        "generate(prompts, BeamSearchParams) is now beam_search(prompts, params), whose results "
        "are in .sequences"
    )


def _constrained(params: SamplingParams, constraint: Any) -> SamplingParams:
    copied = params.clone()
    copied.structured_outputs = constraint
    return copied
