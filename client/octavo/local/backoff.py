"""When to start a process again that ended by itself."""

from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Delays that double from `first_s` to `longest_s` and start over after a long good run."""

    first_s: float = 0.5
    longest_s: float = 30.0
    good_run_s: float = 60.0
    num_failures: int = 0

    def next_delay_s(self, ran_for_s: float) -> float:
        """Seconds to wait before the next start, after a run of `ran_for_s`."""
        if ran_for_s >= self.good_run_s:
            self.num_failures = 0
        delay = min(self.first_s * 2.0 ** min(self.num_failures, 16), self.longest_s)
        self.num_failures += 1
        return delay
