"""Every error that a caller can meet has a status and an OpenAI envelope."""

from collections.abc import Iterator

import pytest

from octavo_protocol import errors
from octavo_protocol.asgi import error_answer, http_error_answer
from octavo_protocol.errors import OctavoError, ValidationError, envelope

EXPECTED: dict[type[OctavoError], tuple[int, str]] = {
    errors.OctavoError: (500, "internal_error"),
    errors.ClientError: (400, "invalid_request_error"),
    errors.ValidationError: (400, "invalid_request_error"),
    errors.AuthenticationError: (401, "authentication_error"),
    errors.ForbiddenError: (403, "permission_error"),
    errors.NotFoundError: (404, "not_found_error"),
    errors.AdapterNotFoundError: (404, "not_found_error"),
    errors.GoneError: (410, "invalid_request_error"),
    errors.OtherRequestError: (422, "invalid_request_error"),
    errors.RequestTooLargeError: (413, "invalid_request_error"),
    errors.RateLimitError: (429, "rate_limit_error"),
    errors.ConfigError: (500, "config_error"),
    errors.ServerError: (500, "internal_error"),
    errors.GenerationError: (500, "internal_error"),
    errors.UnavailableError: (503, "service_unavailable"),
    errors.DeadlineError: (504, "timeout_error"),
}


def tree(kind: type[OctavoError]) -> Iterator[type[OctavoError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from tree(child)


def test_every_class_has_a_status() -> None:
    own = {kind for kind in tree(OctavoError) if kind.__module__ == errors.__name__}

    assert own == set(EXPECTED)


@pytest.mark.parametrize("kind", EXPECTED)
def test_class_maps_to_its_status_and_type(kind: type[OctavoError]) -> None:
    status, body = envelope(kind("why"))

    assert (status, body["error"]["type"]) == EXPECTED[kind]
    assert body == {
        "error": {"message": "why", "type": EXPECTED[kind][1], "param": None, "code": status}
    }


def test_parameter_and_code_reach_the_envelope() -> None:
    _, body = envelope(ValidationError("why", parameter="n", code="too_many"))

    assert (body["error"]["param"], body["error"]["code"]) == ("n", "too_many")


@pytest.mark.parametrize("kind", [errors.ValidationError, errors.ConfigError])
def test_bad_values_are_value_errors(kind: type[OctavoError]) -> None:
    assert issubclass(kind, ValueError)


def test_unexpected_exception_tells_nothing_of_the_inside() -> None:
    status, body, headers = error_answer(RuntimeError("secret"))

    assert status == 500
    assert body["error"]["message"] == "internal error"
    assert headers == {}


def test_unavailable_says_when_to_come_back() -> None:
    assert error_answer(errors.UnavailableError("busy"))[2] == {"retry-after": "1"}


def test_a_refusal_says_why_and_when_to_come_back() -> None:
    headers = errors.refusal_headers("concurrency", 2.1)
    error = errors.RateLimitError("too many", headers=headers)

    assert error_answer(error)[2] == {"x-octavo-reason": "concurrency", "retry-after": "3"}


def test_body_that_is_not_read_ends_the_connection() -> None:
    assert error_answer(errors.RequestTooLargeError("big"))[2] == {"connection": "close"}


def test_unknown_route_and_method_have_the_envelope_too() -> None:
    assert http_error_answer(404, "GET", "/x")["error"]["message"] == "there is no route /x"
    assert http_error_answer(405, "PUT", "/x")["error"] == {
        "message": "PUT is not allowed on /x",
        "type": "invalid_request_error",
        "param": None,
        "code": 405,
    }
