"""The roles grant what the operator uses, and nothing else."""

from collections.abc import Iterable, Sequence

from tests.unit.charts.chart import Object, render

from octavo_operator.leader import LEASE
from octavo_operator.rbac import LEASE_RULES, NAMESPACE_RULES, NODE_RULES, Rule
from octavo_protocol.resources.metadata import API_VERSION

Right = tuple[str, str, str, str]  # group, resource, verb, name of the object or nothing
CLUSTER_ROLE = "octavo-system-octavo-operator"


def used(rules: Sequence[Rule]) -> set[Right]:
    return {
        (rule.group, rule.resource, verb, name)
        for rule in rules
        for verb in rule.verbs
        for name in rule.names or ("",)
    }


def granted(role: Object) -> set[Right]:
    return {
        (group, resource, verb, name)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }


def granted_by_roles(roles: Iterable[Object]) -> set[Right]:
    return {right for role in roles for right in granted(role)}


def test_everywhere_or_in_some_namespaces_the_rights_are_those_that_are_used() -> None:
    everywhere = render().find("ClusterRole", CLUSTER_ROLE)
    some = render({"operator": {"namespaces": ["team-a"]}})

    assert granted(everywhere) == used(NAMESPACE_RULES)
    assert granted(some.find("Role", CLUSTER_ROLE, "team-a")) == used(NAMESPACE_RULES)


def test_the_lease_and_the_nodes() -> None:
    manifests = render()
    assert granted(manifests.find("Role", "octavo-operator-lease")) == used(LEASE_RULES)
    assert granted(manifests.find("ClusterRole", f"{CLUSTER_ROLE}-nodes")) == used(NODE_RULES)
    assert {name for _, _, _, name in used(LEASE_RULES)} == {"", LEASE}


def test_each_role_is_bound_to_the_operator_and_to_nobody_else() -> None:
    subject = {"kind": "ServiceAccount", "name": "octavo-operator", "namespace": "octavo-system"}
    for values in ({}, {"operator": {"namespaces": ["team-a", "team-b"]}}):
        manifests = render(values)
        bindings = manifests.of_kind("RoleBinding") + manifests.of_kind("ClusterRoleBinding")
        roles = manifests.of_kind("Role") + manifests.of_kind("ClusterRole")
        assert all(each["subjects"] == [subject] for each in bindings)
        bound = {(each["roleRef"]["kind"], each["roleRef"]["name"]) for each in bindings}
        own = {(each["kind"], each["metadata"]["name"]) for each in roles}
        users = {(kind, name) for kind, name in own if name.endswith(("-view", "-edit"))}
        assert bound == own - users


def test_nothing_is_granted_by_a_wildcard_and_no_secret_can_be_read() -> None:
    manifests = render()
    rights = granted_by_roles(manifests.of_kind("Role") + manifests.of_kind("ClusterRole"))

    assert not any("*" in part for right in rights for part in right)
    assert {verb for _, resource, verb, _ in rights if resource == "secrets"} == {"create", "patch"}


def test_users_may_see_or_change_models_by_the_roles_that_they_have() -> None:
    manifests = render()
    view = manifests.find("ClusterRole", "octavo-system-octavo-view")
    edit = manifests.find("ClusterRole", "octavo-system-octavo-edit")
    prefix = "rbac.authorization.k8s.io/aggregate-to-"

    def aggregated(role: Object) -> set[str]:
        labels = role["metadata"]["labels"]
        return {key.removeprefix(prefix) for key in labels if key.startswith(prefix)}

    assert aggregated(view) == {"view", "edit", "admin"}
    assert aggregated(edit) == {"edit", "admin"}
    assert {verb for _, _, verb, _ in granted(view)} == {"get", "list", "watch"}
    assert {verb for _, _, verb, _ in granted(edit)} == {
        *("create", "update", "patch", "delete", "deletecollection"),
    }
    group = API_VERSION.split("/")[0]
    assert {each for each, _, _, _ in granted(view) | granted(edit)} == {group}
    assert not any(resource.endswith("/status") for _, resource, _, _ in granted(edit))
