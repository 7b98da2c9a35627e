"""Who shares a prefix cache, and how requests for one name are split."""

from collections import Counter
from itertools import combinations

import pytest

from octavo_router.tenancy.aliases import Alias, Target
from octavo_router.tenancy.salts import cache_salt
from octavo_router.tenancy.tenant import Tenant

SECRET = "s" * 32
CANARY = Alias("gpt", (Target("a", 90), Target("b", 10)))


def test_salts_of_tenants_groups_and_clients_never_meet() -> None:
    tenants = [Tenant("a"), Tenant("b"), Tenant("x", cache_group="a"), Tenant("y", cache_group="b")]
    salts = [cache_salt(SECRET, each, own) for each in tenants for own in (None, "a", "b")]
    assert all(first != second for first, second in combinations(salts, 2))
    assert cache_salt("t" * 32, tenants[0], None) not in salts
    assert all(len(salt) == 32 and salt.isalnum() for salt in salts)


def test_a_group_shares_and_a_restart_changes_nothing() -> None:
    group = [Tenant(name, cache_group="friends") for name in ("a", "b")]
    first, second = (cache_salt(SECRET, each, "s") for each in group)
    assert first == second
    assert cache_salt(SECRET, Tenant("acme"), None) == "58fb734cf9cfd0a919e3f11392068d07"


def test_a_split_follows_its_weights() -> None:
    drawn = Counter(
        CANARY.pick(None, is_ready=lambda _: True, draw=lambda each=each: each / 1000)  # type: ignore[misc]
        for each in range(1000)
    )
    assert drawn == {"a": 900, "b": 100}


def test_what_sticks_stays_and_follows_the_weights_too() -> None:
    keys = [f"session-{number}" for number in range(4000)]
    first = {key: CANARY.pick(key, is_ready=lambda _: True) for key in keys}
    assert first == {key: CANARY.pick(key, is_ready=lambda _: True) for key in keys}
    assert Counter(first.values())["b"] == pytest.approx(400, rel=0.15)

    more = Alias("gpt", (Target("a", 80), Target("b", 20)))
    moved = [key for key in keys if more.pick(key, is_ready=lambda _: True) != first[key]]
    assert {first[key] for key in moved} == {"a"}
    assert len(moved) == pytest.approx(400, rel=0.2)


def test_a_target_that_cannot_answer_is_passed_over_while_another_can() -> None:
    for key in ("s", None):
        assert CANARY.pick(key, is_ready=lambda model: model == "b") == "b"
        assert CANARY.pick(key, is_ready=lambda _: False) in {"a", "b"}
    off = Alias("gpt", (Target("a", 1), Target("b", 0)))
    assert off.pick(None, is_ready=lambda model: model == "b") == "a"
