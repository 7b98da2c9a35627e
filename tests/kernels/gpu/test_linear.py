from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from octavo_kernels.activation import GeluForm, silu_and_mul
from octavo_kernels.linear import linear, linear_silu_and_mul, pack_linear_weight
from octavo_kernels.reference import activation as reference

pytest.importorskip("triton")

from octavo_kernels.gpu import linear as gpu
from octavo_kernels.gpu.linear_h200 import TABLE
from octavo_kernels.gpu.linear_plans import (
    ROW_BUCKETS,
    DotProducts,
    Plan,
    Shape,
    Streams,
    Tiles,
    choose_plan,
)

PLANS: dict[str, tuple[int, Plan]] = {  # and the most rows that each takes
    "tiles": (16, Tiles(16, 64, 64, 1, 3, 4)),
    "tiles, narrow": (16, Tiles(16, 16, 64, 1, 3, 4, prefetch=128)),
    "tiles, split": (16, Tiles(16, 64, 64, 4, 3, 4, prefetch=128)),
    "tiles, rows first": (64, Tiles(64, 32, 64, 2, 3, 4)),
    "streams": (8, Streams(8, 16, 32, 4, 4)),
    "streams, x first": (16, Streams(16, 4, 32, 4, 4)),
    "streams, one slice": (32, Streams(32, 64, 64, 1, 4)),
    "dot products": (2, DotProducts(8, 128, 4)),
}
FORMS: dict[str, GeluForm] = {"exact": "exact", "tanh": "tanh"}
EPILOGUES = ["plain", "bias", "silu_and_mul", *FORMS]
# The sum in fp32 is exact to ~1e-6 of its size; what is left is up to three roundings, each of
# 2^-9 (bf16) of values no larger than the terms: the product, the activation, the result.
BOUND = {torch.bfloat16: 3 * 2**-8, torch.float16: 3 * 2**-11}


def _randn(generator: torch.Generator, *size: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(*size, generator=generator).to(dtype).to(device)


def _check(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    bound = BOUND[actual.dtype]
    torch.testing.assert_close(actual.double(), expected.double(), atol=bound, rtol=bound)


def _synchronize(device: str) -> None:
    """Weights are read before the kernels before have ended."""
    if device == "cuda":
        torch.cuda.synchronize()


@pytest.fixture
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*size: int, **options: object) -> Tensor:
        return torch.full(size, float("nan"), **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "empty", empty)


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize("size", [(100, 136), (30, 520)], ids=str)
@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("name", PLANS)
def test_every_kernel_matches_fp32_and_repeats_its_bits(
    generator: torch.Generator, device: str, name: str, epilogue: str, size: tuple[int, int]
) -> None:
    most, plan = PLANS[name]
    out_features, in_features = size
    # The interpreter truncates where it should round to bf16.
    dtype = torch.bfloat16 if device == "cuda" else torch.float16
    weight = _randn(generator, out_features, in_features, dtype=dtype, device=device)
    weight *= in_features**-0.5
    for num_rows in {min(3, most), most}:
        x = _randn(generator, num_rows, in_features, dtype=dtype, device=device)
        expected = F.linear(x.float(), weight.float())
        bias = None
        if epilogue in ("bias", *FORMS):
            bias = _randn(generator, out_features, dtype=dtype, device=device)
            expected += bias.float()
        if epilogue in FORMS:
            expected = F.gelu(expected, approximate=epilogue.replace("exact", "none"))
        if epilogue == "silu_and_mul":
            expected = reference.silu_and_mul(expected)
        arrivals = torch.zeros(16, dtype=torch.int32, device=device)
        _synchronize(device)
        first, second = (
            gpu.linear(
                x,
                weight,
                arrivals,
                plan,
                bias=bias,
                is_gated=epilogue == "silu_and_mul",
                gelu=FORMS.get(epilogue),
            )
            for _ in range(2)
        )
        assert first.dtype == dtype
        _check(first, expected)
        assert torch.equal(first, second)
        assert not arrivals.any()


def test_the_activation_rounds_as_it_does_alone(generator: torch.Generator, device: str) -> None:
    """The product itself is exact: small integers."""
    x = torch.randint(-3, 4, (2, 64), generator=generator).half().to(device)
    weight = torch.randint(-3, 4, (32, 64), generator=generator).half().to(device)
    arrivals = torch.zeros(2, dtype=torch.int32, device=device)
    _synchronize(device)
    product = F.linear(x, weight)
    for _, plan in PLANS.values():
        gated = gpu.linear(x, weight, arrivals, plan, is_gated=True)
        _check(gated, silu_and_mul(product))


def test_a_row_does_not_depend_on_the_rows_beside_it(
    generator: torch.Generator, device: str
) -> None:
    x = _randn(generator, 16, 136, dtype=torch.bfloat16, device=device)
    weight = _randn(generator, 100, 136, dtype=torch.bfloat16, device=device)
    arrivals = torch.zeros(16, dtype=torch.int32, device=device)
    _synchronize(device)
    for plan in (PLANS["tiles, split"][1], Streams(16, 16, 32, 4, 4)):
        together = gpu.linear(x, weight, arrivals, plan)
        for row in (0, 7, 15):
            alone = gpu.linear(x[row : row + 1], weight, arrivals, plan)
            assert torch.equal(alone, together[row : row + 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_on_a_cpu_the_fused_forms_are_compositions(
    generator: torch.Generator, dtype: torch.dtype
) -> None:
    packed = pack_linear_weight(torch.randn(64, 32, generator=generator).to(dtype))
    x = torch.randn(2, 3, 32, generator=generator).to(dtype)
    assert torch.equal(linear_silu_and_mul(x, packed), silu_and_mul(linear(x, packed)))


def test_table_covers_every_bucket_with_plans_that_hold_its_rows() -> None:
    for shape, plans in TABLE.items():
        assert tuple(plans) == ROW_BUCKETS
        for num_rows, plan in plans.items():
            assert choose_plan(num_rows, shape) == plan
            if isinstance(plan, DotProducts):
                assert num_rows <= 2
            elif plan is not None:
                assert num_rows <= plan.block_m


def test_unmeasured_shapes_go_by_the_nearest_and_many_rows_by_cublas() -> None:
    assert choose_plan(3, Shape(6000, 4000, False)) == TABLE[Shape(6144, 4096, False)][4]
    assert choose_plan(5, Shape(10**4, 4096, True)) == TABLE[Shape(14336, 4096, True)][8]
    assert choose_plan(129, Shape(4096, 4096, False)) is None
    assert choose_plan(0, Shape(4096, 4096, False)) is None


@pytest.mark.gpu
@pytest.mark.parametrize("shape", TABLE, ids=str)
def test_public_functions_at_the_sizes_of_models(shape: Shape) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    torch.manual_seed(0)
    size = (shape.num_columns * (2 if shape.is_gated else 1), shape.in_features)
    weight = torch.randn(size, device="cuda", dtype=torch.bfloat16) * shape.in_features**-0.5
    packed = pack_linear_weight(weight)
    assert packed.arrivals is not None
    for num_rows in (1, 2, 3, 8, 11, 16, 32, 50, 64, 128, 200):
        x = torch.randn(num_rows, shape.in_features, device="cuda", dtype=torch.bfloat16)
        product = F.linear(x.float(), weight.float())
        torch.cuda.synchronize()
        if shape.is_gated:
            _check(linear_silu_and_mul(x, packed), silu_and_mul(product))
            continue
        bias = torch.randn(size[0], device="cuda", dtype=torch.bfloat16)
        _check(linear(x, packed), product)
        _check(linear(x, packed, bias), product + bias.float())


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 2, 8, 16, 64])
def test_chain_in_a_graph_gives_the_bits_of_the_chain_in_turn(num_rows: int) -> None:
    """Each kernel starts while the one that computes its input still runs."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    torch.manual_seed(0)

    def packed(out_features: int, in_features: int) -> tuple[Tensor, Tensor]:
        weight = torch.randn(out_features, in_features, device="cuda") * in_features**-0.5
        return weight.bfloat16(), gpu.new_arrivals(weight)

    layers = [packed(1024, 2048), packed(6144, 1024), packed(1024, 3072), packed(2048, 1024)] * 4
    first = torch.randn(num_rows, 2048, device="cuda", dtype=torch.bfloat16)

    def chain(overlap: bool) -> Tensor:
        x = first
        for weight, arrivals in layers:
            is_gated = weight.shape[0] == 6144
            shape = Shape(weight.shape[0] // (2 if is_gated else 1), weight.shape[1], is_gated)
            plan = choose_plan(num_rows, shape)
            assert plan is not None
            x = gpu.linear(x, weight, arrivals, plan, is_gated=is_gated, overlap=overlap)
        return x

    torch.cuda.synchronize()
    expected = chain(overlap=False)
    chain(overlap=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = chain(overlap=True)
    assert expected.isfinite().all()
    for _ in range(20):
        actual.fill_(float("nan"))
        graph.replay()
        assert torch.equal(actual, expected)
