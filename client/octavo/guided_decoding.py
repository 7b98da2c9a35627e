"""`GuidedDecodingParams`: the former name of `StructuredOutputsParams`, translated."""

from typing import Any

from octavo_protocol.deprecation import warn_former
from octavo_protocol.structured_outputs import StructuredOutputsParams

# How it was written, and what chose among libraries that are not here.
_WITHOUT_MEANING = ("backend", "_backend", "backend_was_auto", "disable_fallback")


def GuidedDecodingParams(**constraint: Any) -> StructuredOutputsParams:
    """The same constraint as `StructuredOutputsParams`, with a DeprecationWarning.

    `backend` and `disable_fallback` are dropped: there is one library.
    """
    warn_former(
        "GuidedDecodingParams is now StructuredOutputsParams; give it to SamplingParams as "
        "structured_outputs="
    )
    kept = {name: value for name, value in constraint.items() if name not in _WITHOUT_MEANING}
    return StructuredOutputsParams(**kept)
