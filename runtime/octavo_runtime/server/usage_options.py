"""When a stream says how many tokens it took."""

from dataclasses import dataclass

from octavo_protocol.openai import GenerationRequest
from octavo_runtime.server.state import ServerState


@dataclass(frozen=True, slots=True)
class UsageOptions:
    """at_end: in a last chunk without choices. running: on every chunk."""

    at_end: bool
    running: bool

    @classmethod
    def of(cls, state: ServerState, request: GenerationRequest) -> "UsageOptions":
        """What the request asks for; a server may send both always."""
        if state.options.enable_force_include_usage:
            return cls(at_end=True, running=True)
        options = request.stream_options
        at_end = options is not None and options.include_usage
        return cls(
            at_end, running=at_end and options is not None and options.continuous_usage_stats
        )
