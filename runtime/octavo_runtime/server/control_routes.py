"""Routes that stop, empty, put to sleep and profile the engine, for development and operation.

All of them exist in development mode only: whoever can call them can stop the service.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo_protocol.errors import ValidationError
from octavo_protocol.http_app import json_response
from octavo_protocol.openapi import TEXT, ApiRoute, Content, Operation
from octavo_runtime.server.state import PauseMode, ServerState

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_FLAG = {"type": "boolean", "default": False}
_PAUSE_MODES: tuple[PauseMode, ...] = ("abort", "wait")
_T = TypeVar("_T", bound=str)


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
        if not self.state.options.dev_mode:
            return []
        level = {"type": "integer", "minimum": 0, "maximum": 2, "default": 1}
        mode = {"type": "string", "enum": list(_PAUSE_MODES), "default": "abort"}
        tags = {"type": "array", "items": {"type": "string"}}
        formats = {"type": "string", "enum": ["text", "json"], "default": "text"}

        def post(path: str, endpoint: Any, summary: str, answer: Any, **query: Any) -> ApiRoute:
            operation = Operation(summary, (), {200: (Content(answer),)}, (400,), query)
            return ApiRoute(path, endpoint, operation, "POST")

        def get(path: str, endpoint: Any, summary: str, answer: Any) -> ApiRoute:
            return ApiRoute(
                path, endpoint, Operation(summary, (), {200: (Content(answer),)}), "GET"
            )

        return [
            post(
                "/reset_prefix_cache",
                self.reset_prefix_cache,
                "Forget all cached prompt prefixes.",
                Success,
                reset_running_requests=_FLAG,
                reset_external=_FLAG,
            ),
            post("/sleep", self.sleep, "Free memory.", Sleeping, level=level, mode=mode),
            post("/wake_up", self.wake_up, "Take the memory back.", Sleeping, tags=tags),
            get("/is_sleeping", self.is_sleeping, "Has memory been freed?", IsSleeping),
            post("/pause", self.pause, "Take no new work.", Status, mode=mode, clear_cache=_FLAG),
            post("/resume", self.resume, "Take work again.", Status),
            get("/is_paused", self.is_paused, "Is new work refused?", IsPaused),
            post("/start_profile", self.start_profile, "Begin a profile.", Status),
            post("/stop_profile", self.stop_profile, "End and write the profile.", Status),
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
        arguments = {}
        if _flag(request, "reset_running_requests"):
            arguments["reset_running_requests"] = True
        _flag(request, "reset_external")  # there is no external cache: nothing to do
        is_done = await self.state.llm.control("reset_prefix_cache", **arguments)
        return json_response(Success(bool(is_done)))

    async def sleep(self, request: Request) -> Response:
        """What runs is ended (mode abort) or finished first (wait); nothing new is taken."""
        self.state.check_runs()
        level = _choice(request, "level", ("0", "1", "2"), "1")
        await self.state.pause(_choice(request, "mode", _PAUSE_MODES, "abort"), clear_cache=False)
        await self.state.llm.control("sleep", level=int(level))
        return json_response(Sleeping("sleeping", level=int(level)))

    async def wake_up(self, request: Request) -> Response:
        self.state.check_runs()
        tags = request.query_params.getlist("tags") or None
        await self.state.llm.control("wake_up", tags=tags)
        is_asleep = await self.state.llm.control("is_sleeping")
        self.state.is_paused = bool(is_asleep)
        return json_response(Sleeping("sleeping" if is_asleep else "awake", tags=tags))

    async def is_sleeping(self, request: Request) -> Response:
        self.state.check_runs()
        return json_response(IsSleeping(bool(await self.state.llm.control("is_sleeping"))))

    async def pause(self, request: Request) -> Response:
        self.state.check_runs()
        mode = _choice(request, "mode", _PAUSE_MODES, "abort")
        clear = _flag(request, "clear_cache")
        await self.state.pause(mode, clear_cache=clear)
        return json_response(Status("paused"))

    async def resume(self, request: Request) -> Response:
        self.state.is_paused = False
        return json_response(Status("resumed"))

    async def is_paused(self, request: Request) -> Response:
        return json_response(IsPaused(self.state.is_paused))

    async def start_profile(self, request: Request) -> Response:
        self.state.check_runs()
        await self.state.llm.control("start_profile")
        return json_response(Status("profiling"))

    async def stop_profile(self, request: Request) -> Response:
        self.state.check_runs()
        await self.state.llm.control("stop_profile")
        return json_response(Status("written"))

    async def server_info(self, request: Request) -> Response:
        """Keys are not among it: they are no part of what a replica's API offers."""
        shown = _choice(request, "config_format", ("text", "json"), "text")
        info: dict[str, Any] = {
            "api": dataclasses.asdict(self.state.options),
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


def _choice(request: Request, name: str, choices: Sequence[_T], default: _T) -> _T:
    value = request.query_params.get(name, default)
    for choice in choices:
        if choice == value:
            return choice
    raise ValidationError(f"{name} must be one of {', '.join(choices)}", parameter=name)
