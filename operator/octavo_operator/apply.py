"""When a child must be applied, and with what around it. Pure.

Each applied manifest carries its own hash as an annotation. A live object is as it should be when
it carries the same hash and still holds everything that the manifest says; what others have added
to it is theirs. So a restarted operator writes nothing where nothing has changed, and a changed
manifest is applied even if it only lost a field.

The API server may write a value differently (`1000m` as `1`), which looks like drift for ever; an
apply that left the live object as it is now is not repeated.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from octavo_operator.desired import Manifest
from octavo_operator.observed import KubernetesObject

APPLIED_HASH = "octavo.dev/applied-hash"

# Parts of an object that change without anybody changing what it should be.
_VOLATILE = ("resourceVersion", "managedFields", "generation", "selfLink")
# Items of these lists are told apart by one of their fields.
_LIST_KEYS = ("name", "mountPath", "containerPort", "key", "uid")


def prepared(manifest: Manifest, owner: KubernetesObject) -> Manifest:
    """A child's manifest with its namespace, owner and hash."""
    metadata = {
        **manifest["metadata"],
        "namespace": owner["metadata"]["namespace"],
        "ownerReferences": [owner_reference(owner)],
    }
    whole = {**manifest, "metadata": metadata}
    annotations = {**(metadata.get("annotations") or {}), APPLIED_HASH: digest(whole)}
    return {**whole, "metadata": {**metadata, "annotations": annotations}}


def owner_reference(owner: KubernetesObject) -> dict[str, Any]:
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def digest(value: object) -> str:
    """Equal for equal JSON values."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def essence(live: KubernetesObject) -> str:
    """Hash of what an object should be and its metadata, without status and bookkeeping."""
    metadata = {k: v for k, v in live["metadata"].items() if k not in _VOLATILE}
    return digest({k: v for k, v in live.items() if k != "status"} | {"metadata": metadata})


def needs_apply(
    manifest: Manifest, live: KubernetesObject, applied: tuple[str, str] | None
) -> bool:
    """manifest: a prepared one. applied: (its hash, `essence` of the answer) of the last apply."""
    wanted = manifest["metadata"]["annotations"][APPLIED_HASH]
    found = (live["metadata"].get("annotations") or {}).get(APPLIED_HASH)
    if found == wanted and holds(live, manifest):
        return False
    return applied != (wanted, essence(live))


def is_of_former(live: KubernetesObject, owner: KubernetesObject) -> bool:
    """Its controller has `owner`'s name and is another: the garbage collector will remove it."""
    return any(
        each.get("controller")
        and (each["kind"], each["name"]) == (owner["kind"], owner["metadata"]["name"])
        and each["uid"] != owner["metadata"]["uid"]
        for each in live["metadata"].get("ownerReferences") or ()
    )


def holds(live: Any, wanted: Any) -> bool:
    """Everything in `wanted` is in `live`. Null and empty in `wanted` are as good as absent."""
    if isinstance(wanted, Mapping):
        if not isinstance(live, Mapping):
            return not wanted
        return all(
            holds(live[name], each) if name in live else each in (None, {}, [])
            for name, each in wanted.items()
        )
    if isinstance(wanted, list | tuple):
        return isinstance(live, list | tuple) and _list_holds(live, wanted)
    return bool(live == wanted) and isinstance(live, bool) == isinstance(wanted, bool)


def _list_holds(live: Sequence[Any], wanted: Sequence[Any]) -> bool:
    key = next((each for each in _LIST_KEYS if _all_have(each, wanted)), None)
    if key is None:
        return len(live) == len(wanted) and all(map(holds, live, wanted))
    by_key = {each[key]: each for each in live if isinstance(each, Mapping) and key in each}
    return all(each[key] in by_key and holds(by_key[each[key]], each) for each in wanted)


def _all_have(key: str, items: Sequence[Any]) -> bool:
    """`key` is in every item, with values that tell them apart."""
    if not items or not all(isinstance(each, Mapping) and key in each for each in items):
        return False
    values = [each[key] for each in items]
    return all(isinstance(each, str | int) for each in values) and len(set(values)) == len(values)
