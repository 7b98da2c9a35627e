"""Vectors of 16 floats for numba kernels, and one register-tiled matrix product.

Explicit vectors instead of the auto-vectorizer: what a kernel computes, and in which order it
rounds, does not then depend on the optimizer's mood. LLVM splits the 16 lanes on machines with
narrower registers. Addresses are plain int64; bfloat16 is read and written as the upper half of a
float32.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, no-any-return, misc"
from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 16

_F32 = ir.FloatType()
_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_VF, _VI = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)

# Cephes expf: |error| < 1 ulp over the clamped range. ln 2 in two parts, so that the reduction is
# exact.
_EXP_LOW, _EXP_HIGH = -87.33, 88.37
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
_EXP_POLYNOMIAL = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)


class _Vector(types.Type):
    def __init__(self) -> None:
        super().__init__(name="float32x16")


vector = _Vector()


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, _VF)


def _as_f32(value: float) -> float:
    """llvmlite wants float constants that float32 holds exactly."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def _splat(builder: ir.IRBuilder, scalar: ir.Value, width: int = LANES) -> ir.Value:
    element = ir.VectorType(scalar.type, width)
    one = builder.insert_element(ir.Constant(element, ir.Undefined), scalar, _I32(0))
    mask = ir.Constant(ir.VectorType(_I32, width), [0] * width)
    return builder.shuffle_vector(one, ir.Constant(element, ir.Undefined), mask)


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_VF, [_as_f32(value)] * LANES)


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
    function_type = ir.FunctionType(result, [arg.type for arg in args])
    function = cgutils.get_or_insert_function(builder.module, function_type, name)
    return builder.call(function, args)


def _fma(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    return _call(builder, f"llvm.fma.v{a.type.count}f32", a.type, a, b, c)


def _load(builder: ir.IRBuilder, address: ir.Value, bf16: bool, width: int = LANES) -> ir.Value:
    element = _I16 if bf16 else _F32
    pointer = builder.inttoptr(address, ir.VectorType(element, width).as_pointer())
    raw = builder.load(pointer, align=2 if bf16 else 4)
    if not bf16:
        return raw
    wide = ir.VectorType(_I32, width)
    bits = builder.shl(builder.zext(raw, wide), ir.Constant(wide, [16] * width))
    return builder.bitcast(bits, ir.VectorType(_F32, width))


def _round_bits(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """`value` as a bfloat16 in the upper half of each lane, to nearest even; NaN stays NaN."""
    bits = builder.bitcast(value, _VI)
    odd = builder.and_(
        builder.lshr(bits, ir.Constant(_VI, [16] * LANES)), ir.Constant(_VI, [1] * LANES)
    )
    rounded = builder.add(bits, builder.add(odd, ir.Constant(_VI, [0x7FFF] * LANES)))
    quiet = builder.or_(bits, ir.Constant(_VI, [0x400000] * LANES))
    return builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)


def _operation(signature: Any, emit: Callable[..., Any]) -> Any:
    """An intrinsic of fixed signature whose body is `emit(builder, *args)`."""

    def codegen(context, builder, sig, args):
        result = emit(builder, *args)
        return context.get_dummy_value() if result is None else result

    arity = len(signature.args)
    names = ", ".join(f"a{i}" for i in range(arity))
    namespace: dict[str, Any] = {"signature": signature, "codegen": codegen}
    exec(f"def operation(typingctx, {names}):\n    return signature, codegen", namespace)
    return intrinsic(namespace["operation"])


def _store_f32(builder, address, value):
    builder.store(value, builder.inttoptr(address, _VF.as_pointer()), align=4)


def _store_bf16(builder, address, value):
    upper = builder.lshr(_round_bits(builder, value), ir.Constant(_VI, [16] * LANES))
    half = ir.VectorType(_I16, LANES)
    builder.store(builder.trunc(upper, half), builder.inttoptr(address, half.as_pointer()), align=2)


def _to_bf16(builder, value):
    mask = ir.Constant(_VI, [0xFFFF0000] * LANES)
    return builder.bitcast(builder.and_(_round_bits(builder, value), mask), _VF)


def _exp(builder, x):
    # x > low is false for NaN too, so NaN is put back at the end.
    low = _constant(_EXP_LOW)
    clamped = _call(builder, "llvm.maxnum.v16f32", _VF, x, low)
    clamped = _call(builder, "llvm.minnum.v16f32", _VF, clamped, _constant(_EXP_HIGH))
    n = _call(builder, "llvm.rint.v16f32", _VF, builder.fmul(clamped, _constant(_LOG2_E)))
    r = _fma(builder, n, _constant(-_LN2_HIGH), clamped)
    r = _fma(builder, n, _constant(-_LN2_LOW), r)
    p = _constant(_EXP_POLYNOMIAL[0])
    for coefficient in _EXP_POLYNOMIAL[1:]:
        p = _fma(builder, p, r, _constant(coefficient))
    p = _fma(builder, p, builder.fmul(r, r), r)
    p = builder.fadd(p, _constant(1.0))
    exponent = builder.shl(builder.fptosi(n, _VI), ir.Constant(_VI, [23] * LANES))
    scaled = builder.bitcast(builder.add(builder.bitcast(p, _VI), exponent), _VF)
    kept = builder.select(builder.fcmp_ordered("<", x, low), _constant(0.0), scaled)
    return builder.select(builder.fcmp_unordered("uno", x, x), x, kept)


def _sum(builder, value):
    """Pairwise, always in the same order."""
    width = LANES
    while width > 1:
        width //= 2
        lanes = ir.VectorType(_I32, width)
        low = builder.shuffle_vector(value, value, ir.Constant(lanes, list(range(width))))
        high = builder.shuffle_vector(
            value, value, ir.Constant(lanes, list(range(width, 2 * width)))
        )
        value = builder.fadd(low, high)
    return builder.extract_element(value, _I32(0))


def _atomic_next(builder, address):
    return builder.atomic_rmw(
        "add", builder.inttoptr(address, _I64.as_pointer()), _I64(1), "monotonic"
    )


_v, _i, _f = vector, types.int64, types.float32

load_f32 = _operation(_v(_i), lambda b, a: _load(b, a, False))
load_bf16 = _operation(_v(_i), lambda b, a: _load(b, a, True))
store_f32 = _operation(types.void(_i, _v), _store_f32)
store_bf16 = _operation(types.void(_i, _v), _store_bf16)
to_bf16 = _operation(_v(_v), _to_bf16)
splat = _operation(_v(_f), lambda b, x: _splat(b, x))
add = _operation(_v(_v, _v), lambda b, x, y: b.fadd(x, y))
sub = _operation(_v(_v, _v), lambda b, x, y: b.fsub(x, y))
mul = _operation(_v(_v, _v), lambda b, x, y: b.fmul(x, y))
div = _operation(_v(_v, _v), lambda b, x, y: b.fdiv(x, y))
fma = _operation(_v(_v, _v, _v), _fma)
maximum = _operation(_v(_v, _v), lambda b, x, y: _call(b, "llvm.maxnum.v16f32", _VF, x, y))
exp = _operation(_v(_v), _exp)
sum_lanes = _operation(_f(_v), _sum)
max_lanes = _operation(_f(_v), lambda b, x: _call(b, "llvm.vector.reduce.fmax.v16f32", _F32, x))
read_f32 = _operation(_f(_i), lambda b, a: b.load(b.inttoptr(a, _F32.as_pointer())))
write_f32 = _operation(
    types.void(_i, _f), lambda b, a, x: (b.store(x, b.inttoptr(a, _F32.as_pointer())), None)[1]
)
read_i16 = _operation(types.int16(_i), lambda b, a: b.load(b.inttoptr(a, _I16.as_pointer())))
write_i16 = _operation(
    types.void(_i, types.int16),
    lambda b, a, x: (b.store(x, b.inttoptr(a, _I16.as_pointer())), None)[1],
)
read_i32 = _operation(types.int32(_i), lambda b, a: b.load(b.inttoptr(a, _I32.as_pointer())))
read_i64 = _operation(_i(_i), lambda b, a: b.load(b.inttoptr(a, _I64.as_pointer())))
atomic_next = _operation(_i(_i), _atomic_next)


@intrinsic(prefer_literal=True)
def stack_f32(typingctx, count):
    """Address of `count` (a constant) floats on this thread's stack, aligned to a cache line."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    size = count.literal_value

    def codegen(context, builder, sig, args):
        # cgutils.alloca_once would also store zeros, element by element: seconds of compilation.
        with builder.goto_entry_block():
            slot = builder.alloca(ir.ArrayType(_F32, size))
        slot.align = 64
        return builder.ptrtoint(slot, _I64)

    return types.int64(count), codegen


@intrinsic(prefer_literal=True)
def load(typingctx, bf16, address):
    """16 elements, bfloat16 where the constant is 1, else float32."""
    if not isinstance(bf16, types.IntegerLiteral):
        return None

    def codegen(context, builder, sig, args):
        return _load(builder, args[1], bool(bf16.literal_value))

    return vector(bf16, types.int64), codegen


@intrinsic(prefer_literal=True)
def store(typingctx, bf16, address, value):
    """The counterpart of `load`."""
    if not isinstance(bf16, types.IntegerLiteral):
        return None

    def codegen(context, builder, sig, args):
        (_store_bf16 if bf16.literal_value else _store_f32)(builder, args[1], args[2])
        return context.get_dummy_value()

    return types.void(bf16, types.int64, vector), codegen


@intrinsic(prefer_literal=True)
def tile_matmul(
    typingctx, max_rows, vecs, width, split, bf16, rows, a, lda, b, ldb, k, c, ldc, accumulate
):
    """c[rows, vecs * width] (+)= a[rows, k] @ b[k, vecs * width], the sum held in registers.

    max_rows, vecs, width, split and bf16 are constants; 1 <= rows <= max_rows picks a loop.
    a and c are float32; b is float32, or bfloat16 when bf16 is 1. Strides count elements. With
    split, k (then a multiple of 4) is summed in up to four parts side by side, where one sum alone
    would wait for the adder.
    """
    literals = (max_rows, vecs, width, split, bf16)
    if not all(isinstance(each, types.IntegerLiteral) for each in literals):
        return None
    n_max, n_vecs, n_width, may_split, is_bf16 = (each.literal_value for each in literals)

    def codegen(context, builder, sig, args):
        rows_, *rest = args[5:]
        done = builder.append_basic_block("tile_done")
        switch = builder.switch(rows_, done)
        for n_rows in range(1, n_max + 1):
            case = builder.append_basic_block(f"tile_rows_{n_rows}")
            switch.add_case(ir.Constant(_I64, n_rows), case)
            builder.position_at_end(case)
            tiles = n_rows * n_vecs
            chains = (4 if tiles < 2 else 2 if tiles < 5 else 1) if may_split else 1
            _emit_tile(builder, n_rows, n_vecs, n_width, chains, bool(is_bf16), *rest)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(*literals, *([types.int64] * 9)), codegen


def _emit_tile(
    builder, n_rows, n_vecs, n_width, chains, bf16, a, lda, b, ldb, k, c, ldc, accumulate
):
    size = 2 if bf16 else 4
    vec = ir.VectorType(_F32, n_width)
    tiles = [(r, v) for r in range(n_rows) for v in range(n_vecs)]
    sums = {(r, v, u): cgutils.alloca_once(builder, vec) for r, v in tiles for u in range(chains)}

    def result(r, v):
        offset = builder.add(builder.mul(ldc, _I64(r)), _I64(v * n_width))
        return builder.inttoptr(builder.add(c, builder.mul(offset, _I64(4))), vec.as_pointer())

    for slot in sums.values():
        builder.store(ir.Constant(vec, [0.0] * n_width), slot)
    with builder.if_then(builder.icmp_signed("!=", accumulate, _I64(0))):
        for r, v in tiles:
            builder.store(builder.load(result(r, v), align=4), sums[r, v, 0])
    left_rows = [builder.add(a, builder.mul(lda, _I64(4 * r))) for r in range(n_rows)]
    b_step = builder.mul(ldb, _I64(size))
    with cgutils.for_range(builder, builder.sdiv(k, _I64(chains)), intp=_I64) as loop:
        for u in range(chains):
            index = builder.add(builder.mul(loop.index, _I64(chains)), _I64(u))
            b_row = builder.add(b, builder.mul(index, b_step))
            right = [
                _load(builder, builder.add(b_row, _I64(v * n_width * size)), bf16, n_width)
                for v in range(n_vecs)
            ]
            for r in range(n_rows):
                place = builder.add(left_rows[r], builder.mul(index, _I64(4)))
                left = builder.load(builder.inttoptr(place, _F32.as_pointer()), align=4)
                left = _splat(builder, left, n_width)
                for v in range(n_vecs):
                    slot = sums[r, v, u]
                    builder.store(_fma(builder, left, right[v], builder.load(slot)), slot)
    for r, v in tiles:
        total = builder.load(sums[r, v, 0])
        for u in range(1, chains):
            total = builder.fadd(total, builder.load(sums[r, v, u]))
        builder.store(total, result(r, v), align=4)
