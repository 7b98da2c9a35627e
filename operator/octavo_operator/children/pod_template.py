"""A deployment's pod template over the operator's own: lists are added to, equal keys win."""

from collections.abc import Iterable, Mapping
from typing import Any

from octavo_protocol.resources.pod_spec import PodTemplateSpec

# What makes two entries of a list the same entry.
_KEYS = {
    "env": "name",
    "volumes": "name",
    "volume_mounts": "mountPath",
    "image_pull_secrets": "name",
    "resource_claims": "name",
}


def laid_over(below: PodTemplateSpec, above: PodTemplateSpec) -> PodTemplateSpec:
    """Everything that either says; where both say something, what `above` says."""
    merged = {
        name: _merged(name, getattr(below, name), getattr(above, name))
        for name in PodTemplateSpec.model_fields
    }
    return PodTemplateSpec.model_construct(**merged)


def _merged(name: str, below: Any, above: Any) -> Any:
    if name == "affinity":
        return below if above is None else above
    match above:
        case dict():
            return {**below, **above}
        case list() if name in _KEYS:
            return by_key(_KEYS[name], below, above)
        case list():
            return [*below, *(each for each in above if each not in below)]
    return below if above is None else above


def by_key(key: str, *lists: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All entries in order; one with the key of an earlier one takes its place."""
    entries: dict[Any, dict[str, Any]] = {}
    for number, entry in enumerate(entry for each in lists for entry in each):
        entries[entry.get(key, number)] = dict(entry)
    return list(entries.values())
