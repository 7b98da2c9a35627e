"""What a request may ask for, and what its tenant makes of it."""

from dataclasses import replace
from typing import Any

import pytest

from octavo_protocol.errors import ForbiddenError, ValidationError
from octavo_protocol.openai import ChatCompletionRequest, CompletionRequest
from octavo_protocol.overrides import NO_OVERRIDES, RequestOverrides
from octavo_router.tenancy.directory import Directory, make_directory
from octavo_router.tenancy.tenant import ANYBODY, EVERY_OVERRIDE, Caller, Limits, Tenant
from octavo_router.tenancy.terms import (
    EXPECTED_OUTPUT_TOKENS,
    Terms,
    asked_headers,
    body_terms,
    check_model,
    generation_terms,
    header_terms,
)

PLAIN = Tenant("plain")
TRUSTED = Tenant("trusted", highest_priority=-5, may_override=EVERY_OVERRIDE)


def directory() -> Directory:
    return make_directory({"f": f"secret: {'s' * 32}\n".encode()})


def terms(tenant: Tenant, headers: dict[str, str], **fields: Any) -> Terms:
    body = CompletionRequest(**{"model": "m", "prompt": "p", **fields})
    found = header_terms(headers, Caller(tenant))
    return body_terms(found, headers, body, model="m", directory=directory())


def test_only_headers_that_mean_something_are_read() -> None:
    raw = [(b"accept", b"*/*"), (b"x-octavo-ttft-ms", b"5"), (b"x-vllm-priority", b"1")]
    assert asked_headers(raw) == {"x-octavo-ttft-ms": "5", "x-vllm-priority": "1"}
    assert asked_headers(raw[:1]) == {}


def test_without_tenants_a_request_is_as_it_came() -> None:
    message: Any = [{"role": "user", "content": "hi"}]
    body = ChatCompletionRequest(model="m", messages=message)
    found = body_terms(header_terms({}, ANYBODY), {}, body, model="m", directory=None)
    assert found == Terms(counts_tokens=True)
    assert generation_terms(found, body).num_output_tokens == EXPECTED_OUTPUT_TOKENS


@pytest.mark.parametrize(
    ("headers", "own", "priority", "overrides"),
    [
        ({}, 0, 0, NO_OVERRIDES),
        ({}, 4, 4, NO_OVERRIDES),
        ({"x-vllm-priority": "3"}, 4, 3, NO_OVERRIDES),
        ({"x-octavo-priority": "-9"}, 4, -9, RequestOverrides(priority=-9)),
        ({"x-octavo-priority": "0"}, 4, 0, RequestOverrides(priority=0)),
    ],
)
def test_without_tenants_any_priority_counts(
    headers: dict[str, str], own: int, priority: int, overrides: RequestOverrides
) -> None:
    body = CompletionRequest(model="m", prompt="p", priority=own)
    found = body_terms(header_terms(headers, ANYBODY), headers, body, model="m", directory=None)
    assert (found.priority, found.overrides) == (priority, overrides)


def test_a_tenant_s_priority_and_salt_stand_over_the_client_s() -> None:
    low = replace(PLAIN, priority=3, highest_priority=3)
    found = terms(low, {}, cache_salt="own")
    assert (found.priority, found.overrides.priority) == (3, 3)
    assert found.overrides.cache_salt == directory().cache_salt(low, "own")
    assert found.overrides.cache_salt != terms(low, {}).overrides.cache_salt
    assert terms(low, {"x-octavo-priority": "3"}).priority == 3  # its own: nothing to allow


@pytest.mark.parametrize(
    ("headers", "fields"),
    [
        ({"x-octavo-priority": "-1"}, {}),
        ({"x-vllm-priority": "-1"}, {}),
        ({}, {"priority": 1}),
        ({"x-octavo-policy": "least-load"}, {}),
        ({"x-octavo-replica": "a"}, {}),
    ],
)
def test_what_a_tenant_may_not_say_is_refused(
    headers: dict[str, str], fields: dict[str, Any]
) -> None:
    with pytest.raises(ForbiddenError, match="tenant plain may not set") as raised:
        terms(PLAIN, headers, **fields)
    assert raised.value.headers == {"x-octavo-reason": "override"}
    assert terms(TRUSTED, headers, **fields).caller.tenant is TRUSTED


def test_a_prompt_is_shared_with_a_group_only_by_who_may() -> None:
    member = Tenant("member", cache_group="docs")
    guest = Tenant("guest", may_share=frozenset({"docs"}))
    shared = terms(member, {}).overrides.cache_salt
    asked = {"x-octavo-cache-group": "docs"}
    assert terms(member, asked).overrides.cache_salt == shared
    assert terms(guest, asked).overrides.cache_salt == shared
    assert terms(guest, {}).overrides.cache_salt != shared
    with pytest.raises(ForbiddenError, match="tenant plain may not share prompts with 'docs'"):
        terms(PLAIN, asked)


def test_the_right_to_a_priority_has_a_bound() -> None:
    assert terms(TRUSTED, {"x-octavo-priority": "-5"}).overrides.priority == -5
    assert terms(TRUSTED, {"x-octavo-priority": "7"}).priority == 7
    with pytest.raises(ForbiddenError, match=r"priorities from -5 on .* not for -6"):
        terms(TRUSTED, {"x-octavo-priority": "-6"})
    # The first of the headers counts, the other one is not passed by.
    both = {"x-octavo-priority": "0", "x-vllm-priority": "-99"}
    assert terms(TRUSTED, both).overrides.priority == 0


@pytest.mark.parametrize("value", ["0", "-5", "1.5", "soon", "", "９", str(10**30)])
@pytest.mark.parametrize("name", ["x-octavo-ttft-ms", "x-octavo-timeout-ms"])
def test_a_deadline_is_a_number_of_milliseconds(name: str, value: str) -> None:
    with pytest.raises(ValidationError, match="whole number of milliseconds"):
        header_terms({name: value}, ANYBODY)
    good = header_terms({name: "1500"}, ANYBODY)
    assert 1.5 in (good.ttft_s, good.timeout_s)


@pytest.mark.parametrize(
    ("asked", "cap", "sent", "expected"),
    [
        (None, None, None, EXPECTED_OUTPUT_TOKENS),
        (None, 100, 100, 100),
        (70, 100, None, 70),
        (100, 100, None, 100),
        (5000, None, None, 5000),
    ],
)
def test_the_cap_bounds_what_names_no_length(
    asked: int | None, cap: int | None, sent: int | None, expected: int
) -> None:
    tenant = Tenant("a", limits=Limits(max_output_tokens=cap))
    message: Any = [{"role": "user", "content": "hi"}]
    body = ChatCompletionRequest(model="m", messages=message, max_completion_tokens=asked, n=2)
    found = generation_terms(Terms(caller=Caller(tenant)), body)
    assert (found.overrides.max_tokens, found.num_output_tokens) == (sent, 2 * expected)


def test_more_than_the_cap_is_refused() -> None:
    caller = Caller(Tenant("a", limits=Limits(max_output_tokens=10)))
    body = CompletionRequest(model="m", prompt="p", max_tokens=11)
    with pytest.raises(ValidationError, match="max_tokens must be at most 10"):
        generation_terms(Terms(caller=caller), body)


def test_a_tenant_of_some_models_must_name_one() -> None:
    caller = Caller(Tenant("a", models=("gpt-*",)))
    check_model(caller, "gpt-4")
    check_model(ANYBODY, None)
    for model in ("llama", None, ""):
        with pytest.raises(ForbiddenError, match=r"name one of gpt-\*"):
            check_model(caller, model)
