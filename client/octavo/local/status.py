"""What a person sees while the platform starts and runs; the supervisor's `Reporter`."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

# A replica's start in order; how far it is decides how far its bar is.
STAGES = ("starting", "loading", "registering", "ready")


class StatusReporter:
    """Bars in a terminal while processes start, lines otherwise. A context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._stages: dict[str, str] = {}
        self._began = time.monotonic()
        if self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description:<12}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[stage]:<24}"),
                TimeElapsedColumn(),
                console=self._console,
            )

    def stage(self, name: str, stage: str) -> None:
        if self._stages.get(name) == stage:
            return
        self._stages[name] = stage
        if self._bars is None:
            self._console.print(f"{name}: {stage} ({time.monotonic() - self._began:.1f} s)")
            return
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=len(STAGES) - 1, stage=stage)
        self._bars.update(self._tasks[name], completed=_progress(stage), stage=stage)

    def note(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def __enter__(self) -> "StatusReporter":
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def write(text: str) -> None:
    """Text for standard output, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _progress(stage: str) -> int:
    for index, known in enumerate(STAGES):
        if stage.startswith(known):
            return index
    return 1
