"""Reading Kubernetes objects, which are plain dictionaries: what is not there, or is of another
type than the API says, is nothing.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

KubernetesObject = Mapping[str, Any]


def value(each: Any, *path: str) -> Any:
    """What is at `path`; None where nothing is."""
    for key in path:
        if not isinstance(each, Mapping):
            return None
        each = each.get(key)
    return each


def text(each: Any, *path: str) -> str:
    found = value(each, *path)
    return found if isinstance(found, str) else ""


def number(each: Any, *path: str) -> int:
    found = value(each, *path)
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def time(each: Any, *path: str) -> datetime | None:
    """A time with its zone; None where there is none."""
    try:
        found = datetime.fromisoformat(text(each, *path))
    except ValueError:
        return None
    return found if found.tzinfo is not None else None


def members(each: Any, *path: str) -> list[KubernetesObject]:
    """The objects of a list."""
    found = value(each, *path)
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, list) else []


def condition(each: Any, type_: str) -> KubernetesObject:
    """The condition of that type in the object's status; empty where there is none."""
    conditions = members(each, "status", "conditions")
    return next((item for item in conditions if item.get("type") == type_), {})


def name(each: Any) -> str:
    return text(each, "metadata", "name")


def label(each: Any, key: str) -> str:
    return text(each, "metadata", "labels", key)
