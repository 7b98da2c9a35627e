"""POST /tokenize and /detokenize."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from octavo_protocol.openai.lists import List
from octavo_protocol.openai.messages import ChatMessage
from octavo_protocol.openai.strict import Strict
from octavo_protocol.openai.tools import Tool


class TokenizeRequest(Strict):
    """Body of POST /tokenize: `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[List[ChatMessage], Field(min_length=1)] | None = None
    tools: List[Tool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: List[dict[str, Any]] | None = None
    reasoning_effort: str | None = None
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message=true needs add_generation_prompt=false")
        return self


class DetokenizeRequest(Strict):
    """Body of POST /detokenize."""

    model: str | None = None
    tokens: List[int]
