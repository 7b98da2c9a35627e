"""Whether a kind was listed anew after its watch had lost its place (410 Gone).

kopf then takes every object that is there, and does not say which ones are gone: they would stay in
the indices for ever, a deleted Deployment as one that serves. So the process is to start again.
"""

import asyncio
from typing import Any

from octavo_operator.observed import KubernetesObject


class Relisting:
    """One for all kinds. happened: an object was listed that had been seen before."""

    def __init__(self) -> None:
        self._seen: set[Any] = set()
        self.happened = asyncio.Event()

    def note(self, event: str | None, body: KubernetesObject) -> None:
        """event: of a watch, as `ADDED`; None where a listing gave the object."""
        uid = body["metadata"]["uid"]
        if event == "DELETED":
            self._seen.discard(uid)
            return
        if event is None and uid in self._seen:
            self.happened.set()
        self._seen.add(uid)
