"""The rights that the operator uses, all of them: what the chart grants, and a test compares.

Discovery and asking what one may do are rights of every account, and not listed. Kinds that may
stop being wanted can be deleted; the others go with their owner, by the garbage collector. Secrets
are written by name and never listed: their contents come from the operator's own settings. (The
answer to a patch shows the object, so the right to patch is in effect one to read what is named.)
"""

from dataclasses import dataclass

_WATCHED = ("get", "list", "watch")


@dataclass(frozen=True, slots=True)
class Rule:
    """As in a Role. group: empty for the core API. names: only these objects, if any are given."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    names: tuple[str, ...] = ()


# In every namespace that is watched; in a ClusterRole where all are.
NAMESPACE_RULES = (
    Rule("octavo.dev", "modeldeployments", _WATCHED),
    Rule("octavo.dev", "loraadapters", ("list", "watch")),
    Rule("octavo.dev", "batchjobs", (*_WATCHED, "delete")),  # delete: some time after their end
    Rule("octavo.dev", "modeldeployments/status", ("patch",)),
    Rule("octavo.dev", "loraadapters/status", ("patch",)),
    Rule("octavo.dev", "batchjobs/status", ("patch",)),
    # To be an owner that its children's deletion may wait for.
    Rule("octavo.dev", "modeldeployments/finalizers", ("update",)),
    Rule("octavo.dev", "batchjobs/finalizers", ("update",)),
    Rule("apps", "deployments", (*_WATCHED, "create", "patch")),
    Rule("batch", "jobs", (*_WATCHED, "create", "patch", "delete")),
    Rule("policy", "poddisruptionbudgets", (*_WATCHED, "create", "patch", "delete")),
    Rule("", "persistentvolumeclaims", (*_WATCHED, "create", "patch", "delete")),
    Rule("", "services", (*_WATCHED, "create", "patch")),
    Rule("", "serviceaccounts", (*_WATCHED, "create", "patch")),
    Rule("", "secrets", ("create", "patch")),
    Rule("", "pods", ("list", "watch", "patch")),  # patch: the deletion cost
    Rule("", "events", ("create", "patch")),
)

# In the operator's own namespace: the leader's lease.
LEASE_RULES = (
    Rule("coordination.k8s.io", "leases", ("create",)),
    Rule("coordination.k8s.io", "leases", ("get", "update"), ("octavo-operator",)),
)

# In the whole cluster, optional: without it nobody tells the GPUs' memory, and `Fits` is absent.
NODE_RULES = (Rule("", "nodes", ("list", "watch")),)
