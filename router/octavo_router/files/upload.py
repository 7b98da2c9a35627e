"""A multipart upload on its way into the storage: never more than one piece of it in memory."""

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from octavo_protocol.asgi import ClientGoneError
from octavo_protocol.errors import RequestTooLargeError, ValidationError
from octavo_router.files.storage import FileWriter

_MAX_FIELDS, _MAX_FIELD_BYTES, _MAX_NAME_CHARS = 16, 4096, 256
_MAX_DISCARDED_BYTES = 64 * 2**20
_FILE = "file"


@dataclass(slots=True)
class Upload:
    """What a form held beside the bytes of its file, which went to the storage."""

    filename: str | None = None
    fields: dict[str, str] = field(default_factory=dict)


async def receive_upload(request: Request, writer: FileWriter, *, max_bytes: int) -> Upload:
    """Writes the form's part `file` and returns the rest.

    Raises `ValidationError` for what is no such form, `RequestTooLargeError` for a file of more
    than `max_bytes`, `ClientGoneError`, and what the writer raises.
    """
    form = _Form(_boundary(request))
    num_discarded = 0
    try:
        async for chunk in request.stream():
            if num_discarded:
                num_discarded += len(chunk)
                if num_discarded > _MAX_DISCARDED_BYTES:
                    break
                continue
            form.feed(chunk)
            data = form.take_file_bytes()
            if writer.num_bytes + len(data) > max_bytes:
                num_discarded = len(data)  # read on: a client that still sends sees no answer
            elif data:
                await writer.write(data)
    except ClientDisconnect as error:
        raise ClientGoneError from error
    if num_discarded:
        raise RequestTooLargeError(
            f"the file is larger than {max_bytes} bytes; split it into several"
        )
    return form.finish()


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise ValidationError(
            "a file is uploaded as a form: `Content-Type: multipart/form-data` with the parts "
            "file and purpose"
        )
    return options[b"boundary"]


class _Form:
    """Takes a form apart, piece by piece."""

    def __init__(self, boundary: bytes) -> None:
        self._upload = Upload()
        self._data = bytearray()
        self._file = bytearray()
        self._header = [bytearray(), bytearray()]
        self._disposition: dict[bytes, bytes] = {}
        self._is_whole = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": lambda data, start, end: self._on_header(0, data[start:end]),
                "on_header_value": lambda data, start, end: self._on_header(1, data[start:end]),
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise ValidationError(f"the form cannot be read: {error}") from error

    def take_file_bytes(self) -> bytes:
        data, self._file = bytes(self._file), bytearray()
        return data

    def finish(self) -> Upload:
        if not self._is_whole:
            raise ValidationError("the form is not complete: its last boundary is missing")
        if self._upload.filename is None:
            raise ValidationError("the form has no part named file", parameter="file")
        return self._upload

    def _on_part_begin(self) -> None:
        self._data.clear()
        self._disposition = {}

    def _on_header(self, place: int, data: bytes) -> None:
        self._header[place] += data

    def _on_header_end(self) -> None:
        if bytes(self._header[0]).lower() == b"content-disposition":
            _, self._disposition = parse_options_header(bytes(self._header[1]))
        self._header = [bytearray(), bytearray()]

    def _on_headers_finished(self) -> None:
        if self._name == _FILE:
            if self._upload.filename is not None:
                raise ValidationError("the form has several parts named file", parameter="file")
            name = self._disposition.get(b"filename", b"file").decode("utf-8", "replace")
            self._upload.filename = _plain(name)
        elif len(self._upload.fields) >= _MAX_FIELDS:
            raise ValidationError(f"the form has more than {_MAX_FIELDS} fields")

    @property
    def _name(self) -> str:
        return self._disposition.get(b"name", b"").decode("utf-8", "replace")[:_MAX_NAME_CHARS]

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == _FILE:
            self._file += data[start:end]
            return
        self._data += data[start:end]
        if len(self._data) > _MAX_FIELD_BYTES:
            raise ValidationError(
                f"the form's field {self._name!r} is longer than {_MAX_FIELD_BYTES} bytes"
            )

    def _on_part_end(self) -> None:
        if self._name != _FILE:
            self._upload.fields[self._name] = self._data.decode("utf-8", "replace")

    def _on_end(self) -> None:
        self._is_whole = True


def _plain(name: str) -> str:
    """A name to show: without folders and what is not printable."""
    last = name.replace("\\", "/").rpartition("/")[2]
    shown = "".join(each for each in last if each.isprintable())
    return shown[:_MAX_NAME_CHARS] or "file"
