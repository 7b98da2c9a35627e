"""Chat templates and messages, under the path that vLLM's users import them from."""

from octavo.chat_templates import load_chat_template
from octavo.conversations import ChatCompletionMessageParam

__all__ = ["ChatCompletionMessageParam", "load_chat_template"]
