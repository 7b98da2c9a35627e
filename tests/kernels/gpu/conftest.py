"""One test body for both: Triton's interpreter where there is no GPU, else the GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch


def _mend_interpreter() -> None:
    try:
        from triton.runtime import interpreter
    except ImportError:
        return
    builder = interpreter.InterpreterBuilder
    patch_tensor, create_dot = interpreter._patch_lang_tensor, builder.create_dot
    create_fp_to_fp = builder.create_fp_to_fp

    def patch(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        # Triton 3.6 calls int() on arrays of one element, which numpy 2.4 refuses.
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        # It would multiply the bits of bf16 as integers.
        return create_dot(self, _widened(a), _widened(b), *rest)

    def fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        from triton import language as tl

        # It loses the carry of a mantissa that is rounded up.
        if target.scalar != tl.float8e4nv or source.dtype.scalar != tl.float32:
            return create_fp_to_fp(self, source, target, rounding)
        rounded = torch.from_numpy(source.data.copy()).to(torch.float8_e4m3fn)
        return interpreter.TensorHandle(rounded.view(torch.uint8).numpy(), target.scalar)

    interpreter._patch_lang_tensor, builder.create_dot = patch, dot
    builder.create_fp_to_fp = fp_to_fp


def _widened(handle: Any) -> Any:
    from triton import language as tl
    from triton.runtime.interpreter import TensorHandle

    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


if not torch.cuda.is_available():
    _mend_interpreter()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """ "cuda", or "cpu" under the interpreter; of the two, what this machine can run."""
    pytest.importorskip("triton")
    device: str = request.param
    if (device == "cuda") != torch.cuda.is_available():
        pytest.skip("the interpreter runs where there is no GPU, the kernels where there is one")
    return device
