"""Beam search types, under the path that vLLM's users import them from."""

from octavo_protocol.beam_search import BeamSearchOutput, BeamSearchParams, BeamSearchSequence

__all__ = ["BeamSearchOutput", "BeamSearchParams", "BeamSearchSequence"]
