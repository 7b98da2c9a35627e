"""Kubernetes quantities as the API server writes them, so that nothing looks like drift."""

import re
from fractions import Fraction
from math import ceil

_FORM = re.compile(r"^([0-9]+(?:\.[0-9]+)?)(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei)?$")
_DECIMAL = {"m": Fraction(1, 1000), "": Fraction(1)} | {
    suffix: Fraction(1000**power) for power, suffix in enumerate(("k", "M", "G", "T", "P", "E"), 1)
}
_BINARY = {"": Fraction(1)} | {
    suffix: Fraction(1024**power)
    for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)
}


def amount(quantity: str) -> Fraction:
    """Cores or bytes. Raises `ValueError` on what is not a quantity."""
    match = _FORM.fullmatch(quantity)
    if match is None:
        raise ValueError(f"{quantity!r} is not a quantity")
    number, suffix = match.groups(default="")
    return Fraction(number) * (_DECIMAL | _BINARY)[suffix]


def canonical(quantity: str) -> str:
    """The same amount with the largest suffix of its family that leaves a whole number.

    1024Mi is 1Gi, 0.5 is 500m, 2000m is 2. Below a thousandth the API server rounds up.
    """
    value = amount(quantity)
    if value == 0:
        return "0"
    if value >= 1024 and quantity.endswith("i"):
        return _written(Fraction(ceil(value)), _BINARY)
    return _written(Fraction(ceil(value * 1000), 1000), _DECIMAL)


def _written(value: Fraction, suffixes: dict[str, Fraction]) -> str:
    suffix, unit = max(
        ((suffix, unit) for suffix, unit in suffixes.items() if value % unit == 0),
        key=lambda each: each[1],
    )
    return f"{value // unit}{suffix}"
