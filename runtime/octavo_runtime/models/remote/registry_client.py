"""Requests to one repository of an OCI registry, with the credentials that it asks for.

Source: OCI Distribution Specification 1.1; Docker Registry token authentication.
"""

import base64
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from urllib.parse import urlsplit

import httpx

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.remote.http_read import check_answer

HINT = "Put credentials that may pull into the environment as OCI_USERNAME and OCI_PASSWORD."
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')


class RegistryClient:
    """GET on `repository` of the registry at `host`. HTTPS, except on this machine itself."""

    def __init__(self, host: str, repository: str, http: httpx.Client) -> None:
        scheme = "http" if urlsplit(f"//{host}").hostname in _LOOPBACK else "https"
        self._root = f"{scheme}://{host}/v2/{repository}"
        self._scope = f"repository:{repository}:pull"
        self._host = host
        self._http = http
        self._authorization: dict[str, str] = {}
        self._lock = Lock()

    @contextmanager
    def get(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """The answer for `path` below the repository. A registry that asks for credentials gets
        them, also in the middle, when a token has run out.
        """
        used = self._authorization
        with self._http.stream("GET", f"{self._root}/{path}", headers={**used, **headers}) as first:
            challenge = first.headers.get("WWW-Authenticate", "")
            if first.status_code != httpx.codes.UNAUTHORIZED or not challenge:
                yield first
                return
        authorization = self._renewed(used, challenge)
        with self._http.stream(
            "GET", f"{self._root}/{path}", headers={**authorization, **headers}
        ) as second:
            yield second

    def _renewed(self, used: dict[str, str], challenge: str) -> dict[str, str]:
        """What to send instead of `used`; several threads that ask at once share one answer."""
        with self._lock:
            if self._authorization is used:
                self._authorization = self._answer(challenge)
            return self._authorization

    def _answer(self, challenge: str) -> dict[str, str]:
        user, password = os.environ.get("OCI_USERNAME"), os.environ.get("OCI_PASSWORD")
        basic = _basic(user, password) if user and password is not None else {}
        kind, _, rest = challenge.partition(" ")
        if kind.lower() == "basic" and basic:
            return basic
        parameters = dict(_PARAMETER.findall(rest))
        if kind.lower() != "bearer" or "realm" not in parameters:
            raise ConfigError(f"{self._host} asks for a login. {HINT}")
        return {"Authorization": f"Bearer {self._token(parameters, basic)}"}

    def _token(self, parameters: Mapping[str, str], basic: Mapping[str, str]) -> str:
        realm = parameters["realm"]
        if self._root.startswith("https:") and not realm.startswith("https:"):
            raise ConfigError(f"{self._host} names a token service without TLS; it is not asked")
        query = {"scope": parameters.get("scope", self._scope)}
        if "service" in parameters:
            query["service"] = parameters["service"]
        response = self._http.get(realm, params=query, headers=basic)
        check_answer(response, f"the token service of {self._host}", HINT)
        try:
            body = response.json()
            return str(body.get("token") or body["access_token"])
        except (ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"the token service of {self._host} gave no token") from error


def _basic(user: str, password: str) -> dict[str, str]:
    encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {encoded}"}
