"""/v1/batches: create, list, retrieve, cancel."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from octavo_protocol.asgi import parse_body, read_body
from octavo_protocol.errors import ValidationError
from octavo_protocol.http_app import json_response
from octavo_protocol.openai.batches import Batch, BatchList, CreateBatchRequest, page_fields
from octavo_protocol.openapi import ApiRoute, Content, Operation
from octavo_router.batches.store import BatchStore
from octavo_router.files.availability import needs_redis
from octavo_router.files.file_store import FileStore
from octavo_router.files.paging import Page
from octavo_router.resumption.asked import idempotency_key

_MAX_BODY_BYTES = 64 * 1024
_PAGE, _MAX_PAGE = 20, 100
_ONE = {200: (Content(Batch),)}


class BatchRoutes:
    """The endpoints over one `BatchStore`. owner_of: whose batches a request sees."""

    def __init__(
        self, batches: BatchStore, files: FileStore, owner_of: Callable[[Request], str]
    ) -> None:
        self._batches = batches
        self._files = files
        self._owner_of = owner_of

    async def create(self, request: Request) -> Response:
        raw = await read_body(request.scope, request.receive, _MAX_BODY_BYTES)
        body = parse_body(raw, CreateBatchRequest)
        owner = self._owner_of(request)
        file = await self._files.get(owner, body.input_file_id)
        if file.purpose != "batch":
            raise ValidationError(
                f"the file {file.id} was uploaded with purpose {file.purpose!r}; a batch needs one "
                "with purpose batch",
                parameter="input_file_id",
            )
        key = idempotency_key(request.headers)
        batch = await self._batches.create(owner, body, key=key)
        return json_response(batch.as_answer())

    async def list_batches(self, request: Request) -> Response:
        page = Page.from_query(request.query_params, default=_PAGE, largest=_MAX_PAGE)
        batches, has_more = await self._batches.list(self._owner_of(request), page)
        answers = [batch.as_answer() for batch in batches]
        return json_response(BatchList(data=answers, has_more=has_more, **page_fields(answers)))

    async def retrieve(self, request: Request) -> Response:
        batch_id = request.path_params["batch_id"]
        batch = await self._batches.get(batch_id, owner=self._owner_of(request))
        return json_response(batch.as_answer())

    async def cancel(self, request: Request) -> Response:
        batch_id = request.path_params["batch_id"]
        batch = await self._batches.cancel(self._owner_of(request), batch_id)
        return json_response(batch.as_answer())

    def routes(self) -> list[ApiRoute]:
        return [
            ApiRoute(
                "/v1/batches",
                needs_redis(self.create),
                Operation(
                    "Have every line of a file answered.",
                    (CreateBatchRequest,),
                    _ONE,
                    errors=(404, 422),
                ),
                "POST",
            ),
            ApiRoute(
                "/v1/batches",
                needs_redis(self.list_batches),
                Operation(
                    "The batches, the newest first.",
                    answers={200: (Content(BatchList),)},
                    errors=(400, 404),
                    query={
                        "after": {"type": "string"},
                        "limit": {"type": "integer", "minimum": 1, "maximum": _MAX_PAGE},
                        "order": {"type": "string", "enum": ["asc", "desc"]},
                    },
                ),
                "GET",
            ),
            ApiRoute(
                "/v1/batches/{batch_id}",
                needs_redis(self.retrieve),
                Operation("How far a batch is.", answers=_ONE, errors=(404,)),
                "GET",
            ),
            ApiRoute(
                "/v1/batches/{batch_id}/cancel",
                needs_redis(self.cancel),
                Operation("End a batch early.", answers=_ONE, errors=(400, 404)),
                "POST",
            ),
        ]
