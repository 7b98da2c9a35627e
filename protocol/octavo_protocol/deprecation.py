"""Warnings about former spellings, which point at the line of the user's that has them."""

import sys
import warnings

_OURS = ("octavo.", "octavo_protocol.")


def warn_former(message: str) -> None:
    """A DeprecationWarning at the nearest caller outside Octavo."""
    level = 2
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        frame = frame.f_back
        level += 1
    warnings.warn(message, DeprecationWarning, stacklevel=level)
