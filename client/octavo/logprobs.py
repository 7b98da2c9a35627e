"""Log-probabilities, under the path that vLLM's users import them from."""

from octavo_protocol.logprobs import FlatLogprobs
from octavo_protocol.outputs import Logprob, PromptLogprobs, SampleLogprobs

__all__ = ["FlatLogprobs", "Logprob", "PromptLogprobs", "SampleLogprobs"]
