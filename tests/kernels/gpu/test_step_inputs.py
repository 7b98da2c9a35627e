"""A step's inputs from what the device keeps and the little that is new, against the reference."""

import dataclasses

import hypothesis.strategies as st
import torch
from hypothesis import HealthCheck, given, settings

from octavo_kernels.gpu import step_inputs as gpu
from octavo_kernels.reference import step_inputs as reference
from octavo_kernels.step_inputs import SequenceRows, StepBuffers, StepChanges

_ROWS, _WIDTH, _BLOCK = 8, 40, 8


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[int], list[int], list[int], list[bool], int]:
    """Rows, starts and lengths of sequences, which of them have a pending token, and padding."""
    rows = draw(st.permutations(range(_ROWS)))[: draw(st.integers(1, 5))]
    starts = [draw(st.integers(0, 120)) for _ in rows]
    lengths = [draw(st.sampled_from([1, 1, 2, 30, 150])) for _ in rows]
    pending = [draw(st.booleans()) for _ in rows]
    return list(rows), starts, lengths, pending, draw(st.integers(0, 3))


def _cumulated(counts: list[int]) -> list[int]:
    return [sum(counts[:i]) for i in range(len(counts) + 1)]


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(step=steps())
def test_a_launch_makes_what_the_reference_makes(
    device: str, step: tuple[list[int], list[int], list[int], list[bool], int]
) -> None:
    rows, starts, lengths, pending, padding = step
    padded = [1, 300, 0][:padding]
    generator = torch.Generator().manual_seed(0)

    def randoms(*shape: int) -> torch.Tensor:
        return torch.randint(0, 99, shape, generator=generator, dtype=torch.int32)

    known = [length - is_pending for length, is_pending in zip(lengths, pending, strict=True)]
    new_blocks = [min(3, -(-(s + n) // _BLOCK)) for s, n in zip(starts, lengths, strict=True)]
    columns = [
        -(-(s + n) // _BLOCK) - new for s, n, new in zip(starts, lengths, new_blocks, strict=True)
    ]
    lists = {
        "rows": rows + [-1] * padding,
        "starts": starts,
        "query_start_loc": _cumulated(lengths + padded),
        "num_shared": [start + 1 if i % 2 else 0 for i, start in enumerate(starts)],
        "token_starts": _cumulated(known),
        "tokens": randoms(sum(known)).tolist(),
        "block_starts": _cumulated(new_blocks),
        "first_columns": columns,
        "blocks": randoms(sum(new_blocks)).tolist(),
    }
    kept = SequenceRows(randoms(_ROWS, _WIDTH), randoms(_ROWS).long())
    results = []
    for prepare, where in ((reference, "cpu"), (gpu, device)):
        changes = StepChanges(
            **{k: torch.tensor(v, dtype=torch.int32, device=where) for k, v in lists.items()}
        )
        total, count = sum(lengths) + sum(padded), len(rows) + padding
        token_ids, positions, slots = torch.full((3, total), -7, dtype=torch.int64, device=where)
        out = StepBuffers(
            token_ids,
            positions,
            slots,
            torch.full((count,), -7, dtype=torch.int32, device=where),
            torch.full((count, _WIDTH), -7, dtype=torch.int32, device=where),
        )
        state = SequenceRows(
            kept.block_tables.clone().to(where), kept.last_tokens.clone().to(where)
        )
        prepare.prepare_step_inputs(changes, state, out, num_sequences=count, block_size=_BLOCK)
        results.append([*dataclasses.astuple(out), state.block_tables])

    for expected, actual in zip(*results, strict=True):
        assert torch.equal(expected, actual.cpu())
