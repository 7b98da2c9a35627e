"""Which parts of an engine sleep, by level and tag. Pure: the engine core acts on it.

    level 0   scheduling: requests wait, nothing is freed
    level 1   kv_cache and weights: the cache is freed; weights are in host memory, where they stay
    level 2   kv_cache and weights: both are freed; the weights are read again at wake-up

A part that sleeps stops the engine. `wake_up` wakes all parts or those that its tags name.
"""

from collections.abc import Iterable
from typing import Any

from octavo_protocol.errors import ValidationError

SCHEDULING, KV_CACHE, WEIGHTS = "scheduling", "kv_cache", "weights"
TAGS = (WEIGHTS, KV_CACHE, SCHEDULING)
MODES = ("abort", "wait", "keep")


class SleepState:
    """parts: those that sleep. has_weights: the weights can be used."""

    def __init__(self, *, is_enabled: bool) -> None:
        self._is_enabled = is_enabled
        self.parts: set[str] = set()
        self.has_weights = True

    @property
    def is_asleep(self) -> bool:
        return bool(self.parts)

    @property
    def level(self) -> int | None:
        """None while awake."""
        if not self.parts:
            return None
        if self.parts == {SCHEDULING}:
            return 0
        return 1 if self.has_weights else 2

    def check(self, level: Any, mode: Any) -> None:
        """Raises `ValidationError` for a sleep that is unknown or not enabled."""
        if level not in (0, 1, 2) or isinstance(level, bool):
            raise ValidationError(f"level must be 0, 1 or 2, got {level!r}", parameter="level")
        if mode not in MODES:
            raise ValidationError(
                f"mode must be one of {', '.join(MODES)}, got {mode!r}", parameter="mode"
            )
        if level > 0 and not self._is_enabled:
            raise ValidationError(
                f"sleep level {level} needs the engine to be started with enable_sleep_mode "
                "(--enable-sleep-mode); level 0 only pauses it",
                parameter="level",
            )

    def fall_asleep(self, level: int) -> None:
        self.parts |= {SCHEDULING} if level == 0 else {KV_CACHE, WEIGHTS}
        self.has_weights = self.has_weights and level < 2

    def waking(self, tags: Iterable[str] | None) -> set[str]:
        """The sleeping parts that `tags` name; None: all. Raises `ValidationError`."""
        if tags is None:
            return set(self.parts)
        if isinstance(tags, str):
            tags = [tags]
        unknown = [tag for tag in tags if tag not in TAGS]
        if unknown:
            raise ValidationError(
                f"tags may be {', '.join(TAGS)}; got {unknown[0]!r}", parameter="tags"
            )
        return self.parts & set(tags)
