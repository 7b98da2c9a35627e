"""The OpenAPI document of a server, from what its routes declare.

Routes stay plain handlers that parse their own bodies; a declaration only says which. So nothing is
validated twice, and the schemas are those of the very types that handlers parse and encode.
"""

import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute, Route

JSON, TEXT, EVENTS = "application/json", "text/plain", "text/event-stream"
FORM = "multipart/form-data"
_FORM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string"}},
}
# Of one event, as OpenAPI 3.2 says it; what `data` holds is JSON, or [DONE] at the end.
_EVENT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}
_REFERENCE = "#/components/schemas/"
_ERROR = "Error"
_ERROR_SCHEMA: dict[str, Any] = {
    "title": _ERROR,
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}
_MEANINGS = {
    200: "The answer.",
    400: "The request cannot be served as it is; the message says what to change.",
    401: "No valid API key came with the request.",
    403: "The API key may not do this; the message says what.",
    404: "What the request names does not exist.",
    413: "The body is too large.",
    429: "Too much at once, or a limit is reached; Retry-After says when to try again.",
    500: "The server failed.",
    503: "No capacity at this moment; try again, or elsewhere.",
    504: "The answer did not begin within its deadline.",
}


@dataclass(frozen=True, slots=True)
class Content:
    """A body of one media type. kind: msgspec struct or other type that JSON is made of, or a union
    of such; None: no schema is given.
    """

    kind: Any = None
    media_type: str = JSON


@dataclass(frozen=True, slots=True)
class Operation:
    """What clients need to know of a route.

    body: types of which the JSON body is one. answers: bodies by status; none: an empty body.
    errors: statuses that come with the error envelope. query: schema of each query parameter.
    form: the body is a multipart form with a file, in place of JSON.
    """

    summary: str
    body: tuple[type[BaseModel], ...] = ()
    answers: Mapping[int, tuple[Content, ...]] | None = None
    errors: tuple[int, ...] = ()
    query: Mapping[str, dict[str, Any]] | None = None
    form: bool = False


class ApiRoute(Route):
    """A route and its declaration. 401, 500 and 503 need no declaration, every route may answer so;
    neither do 400 and 413 where there is a body.
    """

    def __init__(
        self, path: str, endpoint: Callable[..., Any], operation: Operation, *methods: str
    ) -> None:
        super().__init__(path, endpoint, methods=list(methods))
        self.operation = operation
        self.verbs = tuple(method.lower() for method in methods)


def document(
    routes: Iterable[BaseRoute], *, title: str, version: str, refusals: Sequence[int] = ()
) -> dict[str, Any]:
    """The OpenAPI document of those of `routes` that are `ApiRoute`s.

    refusals: statuses that this server may also answer wherever there is a body.
    """
    declared = [route for route in routes if isinstance(route, ApiRoute)]
    schemas = _Schemas([route.operation for route in declared])
    paths: dict[str, dict[str, Any]] = {}
    for route in declared:
        path, names = _path(route.path)
        for verb in route.verbs:
            operation = _operation(route.operation, schemas, names, refusals)
            operation["operationId"] = verb + re.sub(r"\W+", "_", path).rstrip("_")
            paths.setdefault(path, {})[verb] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


class _Schemas:
    """The schemas of all bodies, shared by reference."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        requests = {kind for operation in operations for kind in operation.body}
        ordered = sorted(requests, key=lambda kind: kind.__name__)
        keys, defs = models_json_schema(
            [(kind, "validation") for kind in ordered], ref_template=_REFERENCE + "{model}"
        )
        answers = {
            kind: None
            for operation in operations
            for contents in (operation.answers or {}).values()
            for content in contents
            for kind in _members(content.kind)
        }
        shown, components = msgspec.json.schema_components(
            list(answers), ref_template=_REFERENCE + "{name}"
        )
        named = defs.get("$defs", {})
        if clash := sorted(named.keys() & components.keys()):
            raise ValueError(f"requests and answers have schemas of one name: {clash}")
        self.components = {_ERROR: _ERROR_SCHEMA, **named, **components}
        self._requests = {kind: keys[kind, "validation"] for kind in ordered}
        self._answers: dict[Any, dict[str, Any]] = dict(zip(answers, shown, strict=True))

    def request(self, kinds: Sequence[type[BaseModel]]) -> dict[str, Any]:
        schemas: list[dict[str, Any]] = [self._requests[kind] for kind in kinds]
        return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}

    def answer(self, content: Content) -> dict[str, Any]:
        if content.media_type == EVENTS:
            return _EVENT_SCHEMA
        if content.kind is None:
            return {"type": "string"} if content.media_type != JSON else {}
        schemas = [self._answers[kind] for kind in _members(content.kind)]
        return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _members(kind: Any) -> tuple[Any, ...]:
    """The types of a union; of a single type, that one."""
    if kind is None:
        return ()
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def _operation(
    operation: Operation, schemas: _Schemas, path_names: list[str], refusals: Sequence[int]
) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in path_names
    ] + [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in (operation.query or {}).items()
    ]
    answers = operation.answers or {200: ()}
    responses: dict[str, Any] = {
        str(status): _response(
            status, {content.media_type: schemas.answer(content) for content in contents}
        )
        for status, contents in answers.items()
    }
    has_body = bool(operation.body) or operation.form
    failures = {*operation.errors, 401, 500, 503} | ({400, 413, *refusals} if has_body else set())
    for status in sorted(failures):
        responses.setdefault(str(status), _response(status, _error(answers, schemas)))
    described: dict[str, Any] = {"summary": operation.summary, "responses": responses}
    if parameters:
        described["parameters"] = parameters
    if operation.body:
        described["requestBody"] = {
            "required": True,
            "content": {JSON: {"schema": schemas.request(operation.body)}},
        }
    if operation.form:
        described["requestBody"] = {"required": True, "content": {FORM: {"schema": _FORM_SCHEMA}}}
    return described


def _error(answers: Mapping[int, tuple[Content, ...]], schemas: _Schemas) -> dict[str, Any]:
    """The body of a failure by media type: where a route has one of its own, that."""
    own = {content.media_type: schemas.answer(content) for content in answers.get(500, ())}
    return own or {JSON: {"$ref": _REFERENCE + _ERROR}}


def _response(status: int, contents: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    response: dict[str, Any] = {"description": _MEANINGS[status]}
    if contents:
        response["content"] = {
            media: {"itemSchema" if media == EVENTS else "schema": schema}
            for media, schema in contents.items()
        }
    return response


def _path(path: str) -> tuple[str, list[str]]:
    """A route's path as OpenAPI writes it, and its parameters: `/a/{b:path}` is `/a/{b}`, [b]."""
    names = re.findall(r"{(\w+)", path)
    return re.sub(r"{(\w+):\w+}", r"{\1}", path), names
