"""What a command shows while it works: progress bars in a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress

_LINE_EVERY_S = 5.0


class ByteProgress:
    """A progress bar per stage, counted in bytes; the form of `Progress` that the runtime calls.

    Without a terminal: one line when a stage begins and at most one every five seconds.
    """

    def __init__(self) -> None:
        self._bars: rich.progress.Progress | None = None
        self._tasks: dict[str, rich.progress.TaskID] = {}
        self._shown: dict[str, float] = {}

    def __enter__(self) -> "ByteProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if sys.stderr.isatty():
            self._draw(stage, done, total)
        else:
            self._print(stage, done, total)

    def _draw(self, stage: str, done: int, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
        from rich.progress import TransferSpeedColumn as SpeedColumn

        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description:<24}"),
                BarColumn(),
                DownloadColumn(),
                SpeedColumn(),
                console=Console(stderr=True),
            )
            self._bars.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)

    def _print(self, stage: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if stage in self._shown and now - self._shown[stage] < _LINE_EVERY_S:
            return
        self._shown[stage] = now
        amount = f" {done / 1e6:.0f} of {total / 1e6:.0f} MB" if total else ""
        print(f"{stage}{amount}", file=sys.stderr, flush=True)
