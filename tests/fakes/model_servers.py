"""Servers that models are fetched from, on a loopback port: a web server, S3, an OCI registry.

They speak as much of HTTP, of S3's and of the registry's protocol as fetching takes, check what
clients sign, and fail on demand.
"""

import base64
import hashlib
import hmac
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass
class Answer:
    """content: the whole body; a part of it is sent where the request asks for one."""

    status: int = 200
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class FileServer:
    """Files by path. fails: statuses for the next requests, before any answer. cut_after: bodies
    break off after so many bytes, `num_cuts` times. has_ranges: parts can be asked for. token:
    a bearer token that requests must carry.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    fails: list[int] = field(default_factory=list)
    cut_after: int = 0
    num_cuts: int = 0
    has_ranges: bool = True
    token: str = ""
    redirects: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    num_sent: int = 0
    url: str = ""
    lock: Lock = field(default_factory=Lock)

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def answer(self, path: str, headers: Mapping[str, str]) -> Answer:
        """What to say to a GET or HEAD of `path` (with its query)."""
        if self.token and headers.get("authorization") != f"Bearer {self.token}":
            return Answer(403)
        name = unquote(urlsplit(path).path)
        if name in self.redirects:
            return Answer(302, headers={"Location": self.redirects[name]})
        if name not in self.files:
            return Answer(404)
        return self.file(self.files[name], headers)

    def change(self, method: str, path: str, body: bytes) -> Answer:
        """What to say to a PUT, POST or DELETE; here nothing can be changed."""
        return Answer(403)

    def file(self, content: bytes, headers: Mapping[str, str]) -> Answer:
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        if headers.get("if-match", tag) != tag:
            return Answer(412)
        return Answer(200, content, {"ETag": tag, "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"})

    def bytes_to_send(self, content: bytes) -> bytes:
        """`content`, or what of it goes out before the connection breaks."""
        with self.lock:
            if self.num_cuts and len(content) > self.cut_after:
                self.num_cuts -= 1
                return content[: self.cut_after]
        return content


@dataclass
class S3Server(FileServer):
    """Buckets of objects, as `files` of `/bucket/key`. secrets: by access key id; empty: public.
    is_writable: objects can be put, in parts too. uploads: parts by upload and number, until it is
    completed or given up.
    """

    secrets: dict[str, str] = field(default_factory=dict)
    is_writable: bool = False
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)

    def change(self, method: str, path: str, body: bytes) -> Answer:
        if not self.is_writable:
            return Answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        parts = urlsplit(path)
        name, query = unquote(parts.path), dict(parse_qsl(parts.query, keep_blank_values=True))
        upload = query.get("uploadId", "")
        tag = {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}
        match method:
            case "POST" if "uploads" in query:
                upload = f"upload-{len(self.requests)}-{len(self.uploads)}"
                self.uploads[upload] = {}
                text = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId>"
                return Answer(200, f"{text}</InitiateMultipartUploadResult>".encode())
            case "PUT" if upload:
                self.uploads[upload][int(query["partNumber"])] = body
            case "PUT":
                self.files[name] = body
            case "POST" if upload:
                found = self.uploads.pop(upload)
                self.files[name] = b"".join(found[number] for number in sorted(found))
                text = "<CompleteMultipartUploadResult><ETag>x</ETag>"
                return Answer(200, f"{text}</CompleteMultipartUploadResult>".encode())
            case "POST":
                keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
                for key in keys:
                    self.files.pop(f"{name.rstrip('/')}/{key}", None)
                done = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
                return Answer(200, f"<DeleteResult>{done}</DeleteResult>".encode())
            case "DELETE" if upload:
                self.uploads.pop(upload, None)
                return Answer(204)
            case _:
                self.files.pop(name, None)
                return Answer(204)
        return Answer(200, headers=tag)

    def answer(self, path: str, headers: Mapping[str, str]) -> Answer:
        if self.secrets and not self._is_signed(path, headers):
            return Answer(403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
        parts = urlsplit(path)
        bucket, _, key = unquote(parts.path).strip("/").partition("/")
        if not any(name.startswith(f"/{bucket}/") for name in self.files):
            return Answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        if not key:
            return self._listing(bucket, query.get("prefix", ""), query.get("delimiter", ""))
        if f"/{bucket}/{key}" not in self.files:
            return Answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        return self.file(self.files[f"/{bucket}/{key}"], headers)

    def _listing(self, bucket: str, prefix: str, delimiter: str) -> Answer:
        keys = sorted(name.removeprefix(f"/{bucket}/") for name in self.files)
        objects, folders = [], set()
        for key in keys:
            rest = key.removeprefix(prefix)
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                objects.append(key)
        body = "".join(self._entry(bucket, key) for key in objects)
        for folder in sorted(folders):
            body += f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{body}</ListBucketResult>"
        return Answer(200, text.encode(), {"Content-Type": "application/xml"})

    def _entry(self, bucket: str, key: str) -> str:
        content = self.files[f"/{bucket}/{key}"]
        return (
            f"<Contents><Key>{escape(key)}</Key><Size>{len(content)}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{hashlib.md5(content).hexdigest()}&quot;</ETag></Contents>"
        )

    def _is_signed(self, path: str, headers: Mapping[str, str]) -> bool:
        """Whether the request has a right AWS signature, version 4."""
        kind, _, rest = headers.get("authorization", "").partition(" ")
        fields = dict(item.strip().split("=", 1) for item in rest.split(",") if "=" in item)
        identity, *scope = fields.get("Credential", "").split("/")
        if kind != "AWS4-HMAC-SHA256" or identity not in self.secrets:
            return False
        parts = urlsplit(path)
        names = fields["SignedHeaders"].split(";")
        canonical = "\n".join(
            (
                "GET",
                parts.path,
                "&".join(sorted(parts.query.split("&"))) if parts.query else "",
                *(f"{name}:{headers[name].strip()}" for name in names),
                "",
                fields["SignedHeaders"],
                headers["x-amz-content-sha256"],
            )
        )
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = "\n".join((kind, headers["x-amz-date"], "/".join(scope), digest))
        key = f"AWS4{self.secrets[identity]}".encode()
        for part in (*scope, text):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        return key.hex() == fields["Signature"]


def as_google(server: S3Server) -> str:
    """A service account's key for its buckets: Google's XML protocol is S3's in these requests."""
    return json.dumps(
        {
            "gcs_base_url": server.url,
            "disable_oauth": True,
            "client_email": "",
            "private_key": "",
            "private_key_id": "",
        }
    )


@dataclass
class Registry(FileServer):
    """One repository. manifests: by tag and by digest; blobs: by digest. password: of `user`; with
    one, a token is needed, which `/token` gives for it and which lasts for `token_uses` requests.
    """

    repository: str = "team/model"
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    user: str = ""
    password: str = ""
    token_uses: int = 1000
    uses: dict[str, int] = field(default_factory=dict)

    def push(self, *layers: dict[str, Any], tag: str = "v1", **manifest: Any) -> str:
        """Stores a manifest of `layers` (from `layer`); its digest."""
        media_type = "application/vnd.oci.image.manifest.v1+json"
        body = {"schemaVersion": 2, "mediaType": media_type, "layers": list(layers), **manifest}
        content = json.dumps(body).encode()
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.manifests[tag] = self.manifests[digest] = (body["mediaType"], content)
        return digest

    def layer(self, content: bytes, media_type: str, **annotations: str) -> dict[str, Any]:
        """Stores a blob; its descriptor. Annotation names have `_` for `.`."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.blobs[digest] = content
        named = {key.replace("_", "."): value for key, value in annotations.items()}
        size = len(content)
        return {"mediaType": media_type, "digest": digest, "size": size, "annotations": named}

    def answer(self, path: str, headers: Mapping[str, str]) -> Answer:
        if urlsplit(path).path == "/token":
            return self._token(path, headers)
        if self.password and not self._is_known(headers):
            realm = f'Bearer realm="{self.url}/token",service="registry"'
            return Answer(401, headers={"WWW-Authenticate": realm})
        kind, _, name = path.removeprefix(f"/v2/{self.repository}/").partition("/")
        if kind == "manifests" and name in self.manifests:
            media_type, content = self.manifests[name]
            return Answer(200, content, {"Content-Type": media_type})
        if kind == "blobs" and name in self.blobs:
            return self.file(self.blobs[name], headers)
        return Answer(404)

    def _token(self, path: str, headers: Mapping[str, str]) -> Answer:
        basic = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        query = dict(parse_qsl(urlsplit(path).query))
        scope = f"repository:{self.repository}:pull"
        if query != {"scope": scope, "service": "registry"}:
            return Answer(400)
        if headers.get("authorization") != f"Basic {basic}":
            return Answer(401)
        token = f"token-{len(self.uses)}"
        self.uses[token] = 0
        return Answer(200, json.dumps({"token": token}).encode())

    def _is_known(self, headers: Mapping[str, str]) -> bool:
        token = headers.get("authorization", "").removeprefix("Bearer ")
        if self.uses.get(token, self.token_uses) >= self.token_uses:
            return False
        self.uses[token] += 1
        return True


@contextmanager
def serving(state: FileServer) -> Iterator[None]:
    """Answers on a free loopback port, which `state.url` then names."""
    server = _Server(("127.0.0.1", 0), _handler(state))
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that leaves is no error
            super().handle_error(request, client_address)


def _handler(state: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._respond(has_body=True)

        def do_HEAD(self) -> None:
            self._respond(has_body=False)

        def do_PUT(self) -> None:
            self._change()

        def do_POST(self) -> None:
            self._change()

        def do_DELETE(self) -> None:
            self._change()

        def _change(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with state.lock:
                answer = state.change(self.command, self.path, body)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def _respond(self, *, has_body: bool) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            with state.lock:
                state.requests.append((self.path, headers))
                failure = state.fails.pop(0) if state.fails else None
            answer = Answer(failure) if failure else state.answer(self.path, headers)
            content, status = answer.content, answer.status
            wanted = headers.get("range", "") if state.has_ranges and status == 200 else ""
            if wanted.startswith("bytes="):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                begin, end = int(first), min(int(last or len(content)), len(content) - 1)
                answer.headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
                content, status = content[begin : end + 1], 206
            self.send_response(status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if not has_body:
                return
            sent = state.bytes_to_send(content) if "ETag" in answer.headers else content
            with state.lock:
                state.num_sent += len(sent)
            self.wfile.write(sent)
            self.close_connection = len(sent) < len(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing: tests look at `requests`."""

    return Handler
