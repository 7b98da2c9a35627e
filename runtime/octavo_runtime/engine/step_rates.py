"""Measured speed of the engine, as a smoothed average over recent steps."""

_SMOOTHING = 0.1  # weight of the newest step
_MIN_PREFILL_TOKENS = 16  # smaller chunks say little about the prefill rate


class StepRates:
    """prefill_tokens_per_s: all tokens of steps that prefill, over their time.
    decode_tokens_per_s: tokens of steps that only decode, over theirs. 0 = not yet known.
    """

    def __init__(self) -> None:
        self.prefill_tokens_per_s = 0.0
        self.decode_tokens_per_s = 0.0

    def add(self, num_tokens: int, num_decodes: int, seconds: float) -> None:
        """Takes a step of `num_tokens` tokens in all, `num_decodes` of them decodes."""
        if seconds <= 0 or num_tokens == 0:
            return
        rate = num_tokens / seconds
        if num_tokens - num_decodes >= _MIN_PREFILL_TOKENS:
            self.prefill_tokens_per_s = _blend(self.prefill_tokens_per_s, rate)
        elif num_tokens == num_decodes:
            self.decode_tokens_per_s = _blend(self.decode_tokens_per_s, rate)


def _blend(old: float, new: float) -> float:
    return new if old == 0 else (1 - _SMOOTHING) * old + _SMOOTHING * new
