"""Tools that a chat request offers to the model, and which of them it must use."""

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from octavo_protocol.openai.strict import Strict

_NAME = re.compile(r"[a-zA-Z0-9_.\-]{1,128}")


class FunctionDefinition(Strict):
    """parameters: JSON schema of the arguments; None: any object."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("a function name has 1 to 128 letters, digits, '_', '-' or '.'")
        return name


class Tool(Strict):
    type: Literal["function"] = "function"
    function: FunctionDefinition


class NamedFunction(Strict):
    name: str


class NamedToolChoice(Strict):
    """The model must call this function."""

    type: Literal["function"] = "function"
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice


class ToolFunctionCall(BaseModel):
    """arguments: JSON text of an object, or the object."""

    model_config = ConfigDict(extra="ignore")

    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(BaseModel):
    """A call in the history of a conversation."""

    model_config = ConfigDict(extra="ignore")

    id: str | None = None
    type: Literal["function"] = "function"
    function: ToolFunctionCall
