"""How long the launch of a step can wait without the device waiting for it.

A device that overlaps steps is busy as long as the next one is launched before the running one
ends. Launched at once, it leaves out a request that arrives a moment later, which then waits for
both. So it is launched as late as it may be, by what such steps and such launches took before:

    device   | step 1             | step 2
    host     | … arrivals … | launch 2 | tokens of 1 | … arrivals …

Too early an estimate costs a little of that; too late a one leaves the device without work. Hence
steps count as short as they lately were, and launches as long. Pure: the caller has the clock.
"""

from collections import deque
from typing import NamedTuple

_FORGET = 0.1  # of the distance to a new value on the other side
_SLACK_S = 0.0003  # to wake up, and of a step that is shorter than those before it
_DECODES, _TOKENS = 8, 64  # that make no difference


class StepShape(NamedTuple):
    """Steps of one shape take about as long. has_prompts: some have more than one token."""

    has_prompts: bool
    size: int

    @classmethod
    def of(cls, num_tokens: int, *, has_prompts: bool) -> "StepShape":
        return cls(has_prompts, -(-num_tokens // (_TOKENS if has_prompts else _DECODES)))


class _Running(NamedTuple):
    shape: StepShape
    started: float


class LaunchTiming:
    """Told of every launch and of every end of a step, in order. Times in seconds, of one clock."""

    def __init__(self) -> None:
        self._step_s: dict[StepShape, float] = {}
        self._launch_s: dict[bool, float] = {}
        self._running: deque[_Running] = deque()
        self._free_at = 0.0  # when the device was through with the last step that has ended

    def launched(self, shape: StepShape, started: float, ended: float) -> None:
        """A step was planned and launched from `started` to `ended`."""
        known = self._launch_s.get(shape.has_prompts, 0.0)
        self._launch_s[shape.has_prompts] = _upper(known, ended - started)
        self._running.append(_Running(shape, started))

    def finished(self, device_s: float | None, now: float) -> None:
        """The oldest step is over, and took the device so long; None: it cannot tell."""
        step = self._running.popleft()
        expected = self._expected_end(step)
        self._free_at = now if expected is None else min(expected, now)  # it may be noticed late
        if device_s is not None:
            self._step_s[step.shape] = _lower(self._step_s.get(step.shape, device_s), device_s)

    def spare_s(self, now: float, *, has_prompts: bool) -> float:
        """Seconds from `now` until the next step must be launched, which has prompts or not. Zero
        while the device has no step, or one of unknown length, or another one after it.
        """
        launch_s = self._launch_s.get(has_prompts)
        if len(self._running) != 1 or launch_s is None:
            return 0.0
        expected = self._expected_end(self._running[0])
        return 0.0 if expected is None else max(0.0, expected - launch_s - _SLACK_S - now)

    def _expected_end(self, step: _Running) -> float | None:
        step_s = self._step_s.get(step.shape)
        return None if step_s is None else max(step.started, self._free_at) + step_s


def _lower(known: float, new: float) -> float:
    return min(new, known + _FORGET * (new - known))


def _upper(known: float, new: float) -> float:
    return max(new, known + _FORGET * (new - known))
