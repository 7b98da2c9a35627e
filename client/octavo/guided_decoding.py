"""`GuidedDecodingParams`: the former name of `StructuredOutputsParams`, translated."""

import warnings
from typing import Any

from octavo_protocol.structured_outputs import StructuredOutputsParams

# How it was written, and what chose among libraries that are not here.
_WITHOUT_MEANING = ("backend", "_backend", "backend_was_auto", "disable_fallback")


def GuidedDecodingParams(**constraint: Any) -> StructuredOutputsParams:
    """The same constraint as `StructuredOutputsParams`, with a DeprecationWarning.

    `backend` and `disable_fallback` are dropped: there is one library.
    """
    warnings.warn(
        "GuidedDecodingParams is now StructuredOutputsParams; give it to SamplingParams as "
        "structured_outputs=",
        DeprecationWarning,
        stacklevel=2,
    )
    kept = {name: value for name, value in constraint.items() if name not in _WITHOUT_MEANING}
    return StructuredOutputsParams(**kept)
