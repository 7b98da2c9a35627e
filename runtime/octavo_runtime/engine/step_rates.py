"""Measured speed of the engine, as a smoothed average over recent steps."""

from dataclasses import dataclass

_SMOOTHING = 0.1  # weight of the newest step
_MIN_PREFILL_TOKENS = 16  # smaller chunks say little about the prefill rate


@dataclass(slots=True)
class _Rates:
    """Tokens per second; 0 = not yet known."""

    prefill: float = 0.0
    decode: float = 0.0


class StepRates:
    """Of steps without background work; of those with it, which are short and so take longer for
    each token, only while no others were seen.
    """

    def __init__(self) -> None:
        self._rates, self._beside_background = _Rates(), _Rates()

    @property
    def prefill_tokens_per_s(self) -> float:
        """All tokens of steps that prefill, over their time. 0 = not yet known."""
        return self._rates.prefill or self._beside_background.prefill

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens of steps that only decode, over their time. 0 = not yet known."""
        return self._rates.decode or self._beside_background.decode

    def add(
        self, num_tokens: int, num_decodes: int, seconds: float, *, has_background: bool = False
    ) -> None:
        """Takes a step of `num_tokens` tokens in all, `num_decodes` of them decodes."""
        if seconds <= 0 or num_tokens == 0:
            return
        rates = self._beside_background if has_background else self._rates
        rate = num_tokens / seconds
        if num_tokens - num_decodes >= _MIN_PREFILL_TOKENS:
            rates.prefill = _blend(rates.prefill, rate)
        elif num_tokens == num_decodes:
            rates.decode = _blend(rates.decode, rate)


def _blend(old: float, new: float) -> float:
    return new if old == 0 else (1 - _SMOOTHING) * old + _SMOOTHING * new
