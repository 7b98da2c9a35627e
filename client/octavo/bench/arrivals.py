"""When requests are sent: seconds from the start. Pure."""

import random
from dataclasses import dataclass
from typing import Literal

from octavo_protocol.errors import ConfigError

RampUp = Literal["linear", "exponential"]


@dataclass(frozen=True, slots=True)
class Arrivals:
    """rate: requests a second; inf = all at once. burstiness: shape of the gamma distribution of
    gaps; 1 = Poisson arrivals, less = in bursts, more = evenly. ramp_up: the rate goes from
    `start_rate` to `end_rate` over the requests, in place of `rate`.

    Raises `ConfigError` for rates that are not positive.
    """

    rate: float = float("inf")
    burstiness: float = 1.0
    ramp_up: RampUp | None = None
    start_rate: float | None = None
    end_rate: float | None = None

    def __post_init__(self) -> None:
        if not (self.rate > 0 and self.burstiness > 0):
            raise ConfigError("--request-rate and --burstiness must be above 0")
        if self.ramp_up is None:
            return
        if not (self.start_rate and self.end_rate and min(self.start_rate, self.end_rate) > 0):
            raise ConfigError("--ramp-up-strategy needs --ramp-up-start-rps and --ramp-up-end-rps")

    def times(self, count: int, seed: int) -> list[float]:
        """The time of each of `count` requests; the first one is sent at 0."""
        rng = random.Random(seed)
        times = [0.0]
        for i in range(1, count):
            rate = self._rate(i / count)
            gap = 0.0
            if rate != float("inf"):
                gap = rng.gammavariate(self.burstiness, 1 / (rate * self.burstiness))
            times.append(times[-1] + gap)
        if self.ramp_up is None and self.rate != float("inf") and times[-1] > 0:
            # The rate is met exactly, whatever was drawn.
            scale = (count - 1) / self.rate / times[-1]
            times = [time * scale for time in times]
        return times[:count]

    def _rate(self, progress: float) -> float:
        if self.ramp_up is None or self.start_rate is None or self.end_rate is None:
            return self.rate
        if self.ramp_up == "linear":
            return self.start_rate + (self.end_rate - self.start_rate) * progress
        return self.start_rate * float((self.end_rate / self.start_rate) ** progress)
