"""The chart grants exactly the rights that the operator uses."""

from collections.abc import Iterable
from typing import Any

from tests.unit.charts.chart import render

from octavo_operator.leader import LEASE
from octavo_operator.rbac import LEASE_RULES, NAMESPACE_RULES, NODE_RULES, Rule

WHOLE = "octavo-system-octavo-operator"

Right = tuple[str, str, str, tuple[str, ...]]  # group, resource, verb, names


def rights(rules: Iterable[Rule]) -> set[Right]:
    return {(rule.group, rule.resource, verb, rule.names) for rule in rules for verb in rule.verbs}


def granted(role: dict[str, Any]) -> set[Right]:
    return {
        (group, resource, verb, tuple(rule.get("resourceNames", ())))
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_chart_grants_what_the_operator_uses_and_no_more() -> None:
    manifests = render()
    assert granted(manifests.find("ClusterRole", WHOLE)) == rights(NAMESPACE_RULES)
    assert granted(manifests.find("ClusterRole", f"{WHOLE}-nodes")) == rights(NODE_RULES)
    assert granted(manifests.find("Role", "octavo-operator-lease")) == rights(LEASE_RULES)


def test_listed_namespaces_get_the_same_rights_and_nothing_in_the_cluster() -> None:
    manifests = render({"operator": {"namespaces": ["a"]}, "rbac": {"readNodes": False}})
    assert granted(manifests.find("Role", WHOLE, namespace="a")) == rights(NAMESPACE_RULES)
    assert not {f"ClusterRole/{WHOLE}", f"ClusterRole/{WHOLE}-nodes"} & manifests.names


def test_secrets_are_never_read() -> None:
    verbs = {verb for rule in NAMESPACE_RULES for verb in rule.verbs if rule.resource == "secrets"}
    assert verbs == {"create", "patch"}


def test_the_right_to_renew_is_for_the_one_lease() -> None:
    assert [rule.names for rule in LEASE_RULES if "update" in rule.verbs] == [(LEASE,)]
