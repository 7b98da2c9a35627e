"""What an engine on a GPU has ready when it starts."""

from typing import Any

import pytest
from tests.gpu.conftest import NewEngine
from tests.gpu.test_engine_on_gpu import DRAWN, GREEDY, requests
from tests.unit.runtime.test_engine_sampling import generate

from octavo_runtime.worker.gpu.runner import GpuModelRunner

pytestmark = pytest.mark.gpu
triton = pytest.importorskip("triton")


def test_every_kernel_that_a_start_and_requests_launch_was_compiled_in_the_rehearsal(
    monkeypatch: pytest.MonkeyPatch, new_engine: NewEngine
) -> None:
    compiled: list[str] = []
    rehearsed: list[str] = []

    def note(*, src: Any, **_: Any) -> None:
        compiled.append(src.name)

    rehearse = GpuModelRunner._compile_kernels

    def rehearse_and_note(runner: GpuModelRunner) -> None:
        rehearse(runner)
        rehearsed.extend(compiled)
        compiled.clear()

    monkeypatch.setattr(triton.knobs.compilation, "listener", note)
    monkeypatch.setattr(GpuModelRunner, "_compile_kernels", rehearse_and_note)
    # Blocks of a size that no other test has: nothing of it is compiled yet.
    llm = new_engine(dtype="bfloat16", block_size=64, max_num_seqs=40)
    generate(llm, *requests(), DRAWN | {}, GREEDY | {"logprobs": 2})

    assert "_decode" in rehearsed
    assert compiled == []
