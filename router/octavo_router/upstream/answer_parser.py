"""One HTTP/1.1 answer, out of bytes that come in pieces. Pure: knows no connection.

Interim answers (1xx) are passed over. A body ends by its length, by its last chunk, or with the
connection where it has neither.
"""

import httptools

# In a row, without a byte of the body: of headers, trailers and the extensions of chunks.
MAX_OVERHEAD_BYTES = 64 * 1024


class BrokenAnswerError(ConnectionError):
    """What came is not HTTP/1.1, or ended too early."""


class AnswerParser:
    """Fed with what a connection brings after one request.

    headers: by name in small letters; of those with one name the first. is_headed: status and
    headers are there. is_whole: so is all of the body. can_reuse: the connection may take another
    request, once the answer is whole. num_held: bytes of the body that were not taken.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.is_headed = self.is_whole = self.can_reuse = False
        self.num_held = 0
        self._pieces: list[bytes] = []
        self._num_overhead = 0
        self._has_end = False
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Takes in bytes. Raises `BrokenAnswerError` for what is no answer."""
        self._num_overhead += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.can_reuse = False
            if not self.is_whole:
                raise BrokenAnswerError(f"the answer is not HTTP/1.1: {error}") from error
        if self._num_overhead > MAX_OVERHEAD_BYTES and not self.is_whole:
            raise BrokenAnswerError(f"more than {MAX_OVERHEAD_BYTES} bytes around the body")

    def end(self) -> None:
        """The connection has ended. Raises `BrokenAnswerError` where the answer has not."""
        self.can_reuse = False
        if not self.is_whole:
            if self._has_end or not self.is_headed:
                raise BrokenAnswerError("the connection ended before the answer")
            self.is_whole = True

    def take(self) -> bytes:
        """What is there of the body and was not taken before."""
        pieces, self._pieces = self._pieces, []
        self.num_held = 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # Called by the parser. What comes after the answer is nobody's: it only ends the connection.

    def on_message_begin(self) -> None:
        if self.is_whole:
            self.can_reuse = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.is_headed:
            self.headers.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self.is_headed:
            return
        if status < 200:
            self.headers = {}
            return
        self.status, self.is_headed = status, True
        self._num_overhead = 0
        self.can_reuse = self._parser.should_keep_alive()
        encoding = self.headers.get(b"transfer-encoding", b"")
        self._has_end = b"content-length" in self.headers or encoding.lower().endswith(b"chunked")

    def on_body(self, data: bytes) -> None:
        if not self.is_whole:
            self._num_overhead = 0
            self._pieces.append(data)
            self.num_held += len(data)

    def on_message_complete(self) -> None:
        self.is_whole = self.is_headed
