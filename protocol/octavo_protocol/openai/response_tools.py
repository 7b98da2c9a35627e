"""Tools, tool choice and text format as /v1/responses writes them, turned into those of chat."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from octavo_protocol.openai.lists import List
from octavo_protocol.openai.response_format import JsonSchemaFormat, ResponseFormat
from octavo_protocol.openai.strict import Strict
from octavo_protocol.openai.tools import (
    FunctionDefinition,
    NamedFunction,
    NamedToolChoice,
    Tool,
    ToolChoice,
)


class ResponseTool(BaseModel):
    """A function. Tools that a server would have to run are refused by their type."""

    model_config = ConfigDict(extra="allow")

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> "ResponseTool":
        if self.type != "function":
            raise ValueError(
                f"tools of type {self.type[:40]!r} are not supported: this server runs no tools. "
                "Offer a function and run it yourself"
            )
        if self.name is None:
            raise ValueError("a function needs a name")
        return self

    def as_tool(self) -> Tool:
        """Raises pydantic's error for a name that functions may not have."""
        return Tool(
            function=FunctionDefinition(
                name=self.name or "",
                description=self.description,
                parameters=self.parameters,
                strict=self.strict,
            )
        )


class NamedChoice(Strict):
    type: Literal["function"]
    name: str


class AllowedTools(Strict):
    """Only these of the tools may be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"] = "auto"
    tools: List[NamedChoice]


ResponseToolChoice = Literal["none", "auto", "required"] | NamedChoice | AllowedTools


def chat_tools(
    tools: list[ResponseTool] | None, choice: ResponseToolChoice | None
) -> tuple[list[Tool] | None, ToolChoice | None]:
    """(tools, tool_choice) of the chat request. No tools and an empty list are the same.

    Raises ValueError for a choice of tools that are not there.
    """
    chat = [tool.as_tool() for tool in tools or []]
    if isinstance(choice, NamedChoice):
        return chat or None, NamedToolChoice(function=NamedFunction(name=choice.name))
    if isinstance(choice, AllowedTools):
        allowed = {each.name for each in choice.tools}
        missing = allowed - {tool.function.name for tool in chat}
        if missing:
            raise ValueError(
                f"tool_choice allows {min(missing)[:80]!r}, which is not among the tools"
            )
        return [tool for tool in chat if tool.function.name in allowed] or None, choice.mode
    return chat or None, choice


class TextFormat(Strict):
    """Shape of the answer; the fields of a JSON schema stand beside its type."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = "schema"
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> "TextFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("type json_schema needs schema")
        return self

    def as_response_format(self) -> ResponseFormat:
        if self.type != "json_schema":
            return ResponseFormat(type=self.type)
        schema = {"name": self.name, "schema": self.json_schema, "strict": self.strict}
        return ResponseFormat(
            type="json_schema", json_schema=JsonSchemaFormat.model_validate(schema)
        )


class TextConfig(Strict):
    """verbosity: accepted; how much a model says is for its instructions."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
