"""Routes that stop, empty, put to sleep and profile the engine, for development and operation.

Whoever can call them can stop the service: they exist in development mode only, those of the
profiler also where one is configured.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo_protocol.errors import ValidationError
from octavo_protocol.http_app import json_response
from octavo_protocol.openapi import TEXT, ApiRoute, Content, Operation
from octavo_runtime.engine.sleep import MODES, SCHEDULING, TAGS
from octavo_runtime.server.options import ApiOptions
from octavo_runtime.server.state import ServerState

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_FLAG = {"type": "boolean", "default": False}


class Success(msgspec.Struct):
    success: bool


class Sleeping(msgspec.Struct):
    """status: "sleeping" or "awake"."""

    status: str
    level: int | msgspec.UnsetType = msgspec.UNSET
    tags: list[str] | msgspec.UnsetType | None = msgspec.UNSET


class IsSleeping(msgspec.Struct):
    is_sleeping: bool


class IsPaused(msgspec.Struct):
    is_paused: bool


class Status(msgspec.Struct):
    status: str


class ControlRoutes:
    """The control endpoints of one replica over its `ServerState`."""

    def __init__(self, state: ServerState) -> None:
        self.state = state

    def routes(self) -> list[ApiRoute]:
        profiling = [
            _post("/start_profile", self.start_profile, "Begin a profile.", Status),
            _post("/stop_profile", self.stop_profile, "End and write the profile.", Status),
        ]
        if not self.state.options.dev_mode:
            return profiling if self.state.has_profiler else []
        level = {"type": "integer", "minimum": 0, "maximum": 2, "default": 1}
        mode = {"type": "string", "enum": list(MODES), "default": "abort"}
        tags = {"type": "array", "items": {"type": "string", "enum": list(TAGS)}}
        formats = {"type": "string", "enum": ["text", "json"], "default": "text"}

        return [
            _post(
                "/reset_prefix_cache",
                self.reset_prefix_cache,
                "Forget all cached prompt prefixes.",
                Success,
                reset_running_requests=_FLAG,
                reset_external=_FLAG,
            ),
            _post("/sleep", self.sleep, "Free memory.", Sleeping, level=level, mode=mode),
            _post("/wake_up", self.wake_up, "Take the memory back.", Sleeping, tags=tags),
            _get("/is_sleeping", self.is_sleeping, "Has memory been freed?", IsSleeping),
            _post("/pause", self.pause, "Take no new work.", Status, mode=mode, clear_cache=_FLAG),
            _post("/resume", self.resume, "Take work again.", Status),
            _get("/is_paused", self.is_paused, "Is new work refused?", IsPaused),
            *profiling,
            ApiRoute(
                "/server_info",
                self.server_info,
                Operation(
                    "The settings of this replica.",
                    answers={200: (Content(), Content(media_type=TEXT))},
                    errors=(400,),
                    query={"config_format": formats},
                ),
                "GET",
            ),
        ]

    async def reset_prefix_cache(self, request: Request) -> Response:
        self.state.check_runs()
        with_running = _flag(request, "reset_running_requests")
        _flag(request, "reset_external")  # there is no external cache: nothing to do
        return json_response(Success(await self.state.llm.reset_prefix_cache(with_running)))

    async def sleep(self, request: Request) -> Response:
        """What runs is ended (mode abort), finished first (wait) or goes on later (keep)."""
        self.state.check_runs()
        level = int(_choice(request, "level", ("0", "1", "2"), "1"))
        await self.state.pause(level, _choice(request, "mode", MODES, "abort"))
        return json_response(Sleeping("sleeping", level=level))

    async def wake_up(self, request: Request) -> Response:
        self.state.check_runs()
        tags = request.query_params.getlist("tags") or None
        await self.state.resume(tags)
        status = "sleeping" if self.state.is_paused else "awake"
        return json_response(Sleeping(status, tags=tags))

    async def is_sleeping(self, request: Request) -> Response:
        self.state.check_runs()
        return json_response(IsSleeping(await self.state.llm.is_sleeping()))

    async def pause(self, request: Request) -> Response:
        self.state.check_runs()
        mode = _choice(request, "mode", MODES, "abort")
        clear = _flag(request, "clear_cache")
        await self.state.pause(0, mode)
        if clear:
            await self.state.llm.reset_prefix_cache()
        return json_response(Status("paused"))

    async def resume(self, request: Request) -> Response:
        self.state.check_runs()
        await self.state.resume([SCHEDULING])
        return json_response(Status("resumed"))

    async def is_paused(self, request: Request) -> Response:
        return json_response(IsPaused(self.state.is_paused))

    async def start_profile(self, request: Request) -> Response:
        self.state.check_runs()
        await self.state.llm.start_profile()
        return json_response(Status("profiling"))

    async def stop_profile(self, request: Request) -> Response:
        self.state.check_runs()
        await self.state.llm.stop_profile()
        return json_response(Status("written"))

    async def server_info(self, request: Request) -> Response:
        """Keys and addresses are not among it: they are no part of what the API offers."""
        shown = _choice(request, "config_format", ("text", "json"), "text")
        info: dict[str, Any] = {
            "api": {
                each.name: getattr(self.state.options, each.name)
                for each in dataclasses.fields(ApiOptions)
            },
            "engine": self.state.llm.info,
            "served_names": self.state.served_names,
            "stage": self.state.stage,
        }
        if shown == "json":
            return json_response(info)
        lines = (f"{name}: {value}" for name, value in info.items())
        return Response("\n".join(lines), media_type="text/plain")


def _flag(request: Request, name: str) -> bool:
    value = request.query_params.get(name, "false").lower()
    if value not in _BOOLEANS:
        raise ValidationError(f"{name} must be true or false", parameter=name)
    return _BOOLEANS[value]


def _choice(request: Request, name: str, choices: Sequence[str], default: str) -> str:
    value = request.query_params.get(name, default)
    if value not in choices:
        raise ValidationError(f"{name} must be one of {', '.join(choices)}", parameter=name)
    return value


def _post(path: str, endpoint: Any, summary: str, answer: Any, **query: Any) -> ApiRoute:
    operation = Operation(summary, (), {200: (Content(answer),)}, (400,), query)
    return ApiRoute(path, endpoint, operation, "POST")


def _get(path: str, endpoint: Any, summary: str, answer: Any) -> ApiRoute:
    return ApiRoute(path, endpoint, Operation(summary, answers={200: (Content(answer),)}), "GET")
