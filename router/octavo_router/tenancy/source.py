"""Keeps the tenants as their file says: a change counts within a second or two.

The whole content is read and compared, which sees every kind of change: an edit, a file put in
another's place, the swapped link of a mounted Kubernetes secret. A version that is wrong changes
nothing: it is logged and counted, and the last good one stays.
"""

import asyncio
import logging
from pathlib import Path

from octavo_protocol.errors import ConfigError
from octavo_router.tenancy.directory import Directory, make_directory
from octavo_router.tenancy.tenants_file import read_sources

logger = logging.getLogger(__name__)

POLL_S = 1.0


class TenantSource:
    """directory: the newest good version. is_stale: the file has a newer one that is wrong.

    Raises `ConfigError` where there is no good one to begin with.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sources = read_sources(path)
        self._complaint: str | None = None
        self.directory: Directory = make_directory(self._sources)
        self.num_reloads = self.num_failures = 0

    @property
    def is_stale(self) -> bool:
        return self._complaint is not None

    async def follow(self) -> None:
        """Runs until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> None:
        """Takes what the file says now."""
        try:
            sources = read_sources(self._path)
            if sources == self._sources:
                self._complaint = None
                return
            directory = make_directory(sources)
        except ConfigError as error:
            if error.message != self._complaint:
                logger.error("the tenants stay as they were: %s", error.message)
                self._complaint = error.message
                self.num_failures += 1
            return
        self._sources, self.directory, self._complaint = sources, directory, None
        self.num_reloads += 1
        logger.info("tenants were read again: there are %d", len(directory.tenants))
