"""The router's HTTP client for replicas."""

from octavo_router.upstream.answer_parser import BrokenAnswerError
from octavo_router.upstream.client import Answer, UpstreamClient

__all__ = ["Answer", "BrokenAnswerError", "UpstreamClient"]
