"""How long a step with background work may be: whoever asks meanwhile waits for its end."""

_BESIDE_OTHERS_S, _ALONE_S = 0.02, 1.0
_REMEMBERED_S = 10.0  # for which others are expected to come again
_MIN_TOKENS = 8  # fewer hardly make a step shorter


class BackgroundPace:
    """Turns a time into tokens, by the speed of the engine."""

    def __init__(self) -> None:
        self._seen_at = float("-inf")

    def budget(self, now: float, *, has_foreground: bool, tokens_per_s: float) -> int | None:
        """Tokens of a step that are enough for background work to wait; None: no limit.

        now: seconds. has_foreground: there are other requests. tokens_per_s: of steps with
        prompts; 0 = not yet known.
        """
        if has_foreground:
            self._seen_at = now
        if not tokens_per_s:
            return None
        seconds = _BESIDE_OTHERS_S if now - self._seen_at < _REMEMBERED_S else _ALONE_S
        return max(_MIN_TOKENS, int(seconds * tokens_per_s))
