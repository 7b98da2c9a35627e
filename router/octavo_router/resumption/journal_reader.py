"""A stream that another router generates, as it grows in the journal."""

import asyncio
import time

from octavo_router.resumption.answer import Answer
from octavo_router.resumption.journal import Journal, StreamName

_LOOK_S = 1.0  # also without a notice: its owner may have died
_KEEP_ALIVE_S = 15.0


class JournalReader:
    """Serves clients of a stream without generating it."""

    def __init__(self, journal: Journal, name: StreamName) -> None:
        self._journal = journal
        self._name = name

    async def copy(self, answer: Answer) -> bool:
        """Gives a client what there is and what comes. True: the answer is whole; False: nobody
        generates the rest.
        """
        spoken_at = time.monotonic()
        async with self._journal.watch(self._name) as changed:
            while True:
                changed.clear()
                reading = await self._journal.read(self._name, answer.last)
                if reading.batches and reading.head is not None:
                    await answer.begin(reading.head)
                    await answer.write(reading.batches)
                    spoken_at = time.monotonic()
                elif reading.is_ended and reading.head is not None:
                    await answer.begin(reading.head)
                    await answer.finish()
                    return True
                elif not reading.is_running:
                    return False
                else:
                    await _wait(changed)
                if time.monotonic() - spoken_at > _KEEP_ALIVE_S:
                    await answer.keep_alive()
                    spoken_at = time.monotonic()


async def _wait(changed: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(_LOOK_S):
            await changed.wait()
    except TimeoutError:
        return
