"""How arrays of fp32 travel: as JSON numbers, in base64, or as bytes of several number formats."""

import base64
import sys
from collections.abc import Callable
from functools import cache, partial

import msgspec
import numpy as np
from numpy.typing import NDArray

from octavo_protocol.openai.pooling import EmbedDType, EncodingFormat, Endianness

Array = NDArray[np.float32]


def as_json(values: Array, form: EncodingFormat, dtype: EmbedDType, order: Endianness) -> bytes:
    """JSON of `values` in the format float or base64."""
    if form == "float":
        return msgspec.json.encode(values.tolist())
    return b'"' + base64.b64encode(as_bytes(values, dtype, order)) + b'"'


def as_base64(values: Array) -> str:
    """Little-endian fp32."""
    return base64.b64encode(as_bytes(values, "float32", "little")).decode()


def as_bytes(values: Array, dtype: EmbedDType, order: Endianness) -> bytes:
    """The numbers one after the other, rounded to `dtype`. What an fp8 format cannot hold becomes
    its largest number.
    """
    numbers = _CONVERSIONS[dtype](values)
    if order == "native":
        order = sys.byteorder
    return numbers.astype(numbers.dtype.newbyteorder("<" if order == "little" else ">")).tobytes()


def _bfloat16(values: Array) -> NDArray[np.uint16]:
    """The upper halves of the numbers' bits, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def _fp8(values: Array, *, num_fraction_bits: int, largest: int) -> NDArray[np.uint8]:
    """The nearest of the format's codes; between two of them the even one.

    largest: the code of the largest finite number.
    """
    middles = _fp8_middles(num_fraction_bits, largest)
    size = np.abs(values)
    low = np.searchsorted(middles, size, side="left")
    high = np.searchsorted(middles, size, side="right")
    codes = np.where(low % 2 == 0, low, high)
    signed = np.where(np.isnan(values), 0x7F, codes) | (np.signbit(values) * 0x80)
    return np.asarray(signed, np.uint8)


@cache
def _fp8_middles(num_fraction_bits: int, largest: int) -> Array:
    """Between the numbers of each two neighbouring codes, from 0 to `largest`."""
    codes = np.arange(largest + 1)
    scale = 2**num_fraction_bits
    bias = 2 ** (6 - num_fraction_bits) - 1
    exponents, fractions = codes // scale, codes % scale / scale
    is_normal = exponents > 0
    powers = np.exp2(np.where(is_normal, exponents, 1) - bias)
    table = ((is_normal + fractions) * powers).astype(np.float32)
    middles: Array = (table[:-1] + table[1:]) / 2
    return middles


_CONVERSIONS: dict[EmbedDType, Callable[[Array], NDArray[np.generic]]] = {
    "float32": lambda values: values,
    "float16": lambda values: values.astype(np.float16),
    "bfloat16": _bfloat16,
    "fp8_e4m3": partial(_fp8, num_fraction_bits=3, largest=0x7E),
    "fp8_e5m2": partial(_fp8, num_fraction_bits=2, largest=0x7B),
}
