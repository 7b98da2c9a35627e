"""Sampling parameters, under the path that vLLM's users import them from."""

from octavo.guided_decoding import GuidedDecodingParams
from octavo_protocol.beam_search import BeamSearchParams
from octavo_protocol.sampling_params import (
    RepetitionDetectionParams,
    RequestOutputKind,
    SamplingParams,
    SamplingType,
)
from octavo_protocol.structured_outputs import StructuredOutputsParams

__all__ = [
    "BeamSearchParams",
    "GuidedDecodingParams",
    "RepetitionDetectionParams",
    "RequestOutputKind",
    "SamplingParams",
    "SamplingType",
    "StructuredOutputsParams",
]
