"""Steps of encoders are padded to few sizes, and to those of graphs; prompts do not see padding."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.models.encoder_checkpoints import load_encoder, write_checkpoint
from torch import Tensor

from octavo_runtime.layers.encoder_batch import EncoderBatch
from octavo_runtime.worker.encoder_forward import EncoderForward, padded_size
from octavo_runtime.worker.gpu import encoder_graphs
from octavo_runtime.worker.gpu.encoder_graphs import EncoderGraphs, GraphKey, graph_keys

CPU = torch.device("cpu")
STEPS: list[tuple[list[list[int]], list[list[int]]]] = [
    ([[5]], [[]]),
    ([[5, 6, 7], [8, 9]], [[0, 1, 1], []]),
    ([list(range(5, 20)), [7], list(range(30, 64))], [[], [1], [0] * 10 + [1] * 24]),
    ([[n, n + 1] for n in range(5, 9)], [[]] * 4),
]


class RerunGraphs:
    """Of `StepGraphs`, on a CPU: a replay runs once more what was captured."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._run: Callable[[int], Tensor] | None = None
        self.replayed: list[int] = []

    def capture(self, run: Callable[[int], Tensor]) -> None:
        self._run = run

    def size_for(self, extent: int) -> int | None:
        return extent if self._run is not None and extent < len(self._sizes) else None

    def replay(self, size: int) -> Tensor:
        assert self._run is not None
        self.replayed.append(size)
        return self._run(size)

    def drop(self) -> None:
        self._run = None


@pytest.fixture(scope="module", params=["BertModel", "XLMRobertaModel", "DistilBertModel"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("encoder")
    write_checkpoint(folder, request.param)
    return load_encoder(folder), request.param == "BertModel"


def forward(model: Any, keys: Sequence[GraphKey] = ()) -> EncoderForward:
    encoder, reads_types = model
    return EncoderForward(
        encoder, CPU, EncoderGraphs(keys), max_model_len=64, reads_types=reads_types
    )


@pytest.mark.parametrize(("prompts", "types"), STEPS)
def test_padding_changes_no_prompt(
    model: Any, prompts: list[list[int]], types: list[list[int]]
) -> None:
    types = types if model[1] else [[]] * len(prompts)
    together = forward(model).run(prompts, types)

    start = 0
    for prompt, its_types in zip(prompts, types, strict=True):
        alone = forward(model).run([prompt], [its_types])[: len(prompt)]
        torch.testing.assert_close(
            together[start : start + len(prompt)], alone, atol=1e-5, rtol=1e-5
        )
        start += len(prompt)
    assert len(together) == padded_size(start)


def test_a_graph_computes_what_the_step_would(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_graphs, "StepGraphs", RerunGraphs)
    graphed = forward(model, [GraphKey(16, 2), GraphKey(32, 4), GraphKey(64, 4)])
    graphed.run_each_graph()
    graphed.capture()

    for prompts, types in STEPS:
        types = types if model[1] else [[]] * len(prompts)
        plain = forward(model).run(prompts, types)
        count = sum(map(len, prompts))
        torch.testing.assert_close(
            graphed.run(prompts, types)[:count], plain[:count], atol=1e-5, rtol=1e-5
        )
    assert graphed._graphs._graphs.replayed == [0, 0, 2, 1]  # type: ignore[attr-defined]
    graphed.drop_graphs()
    assert len(graphed.run([[5]], [[]])) == padded_size(1)


def test_a_dropped_graph_is_not_replayed() -> None:
    def compute(batch: EncoderBatch) -> Tensor:
        return batch.positions[:, None]

    never_captured = EncoderForward(
        compute, CPU, EncoderGraphs([GraphKey(16, 2)]), max_model_len=64, reads_types=False
    )
    assert never_captured.run([[4, 4, 4], [4]], [[], []])[:4, 0].tolist() == [0, 1, 2, 0]


def test_steps_have_few_sizes() -> None:
    assert len({padded_size(n) for n in range(1, 2049)}) == 96
    assert [padded_size(n) for n in (1, 8, 9, 128, 129, 257, 1000, 1024, 1025, 2048)] == [
        8, 8, 16, 128, 136, 272, 1024, 1024, 1056, 2048,
    ]  # fmt: skip


@given(st.integers(1, 1 << 20))
def test_padding_is_a_sixteenth_at_most(num_tokens: int) -> None:
    size = padded_size(num_tokens)
    assert 0 <= size - num_tokens < max(8, num_tokens / 16)


def test_graphs_end_at_the_largest_step_and_hold_a_prompt_in_eight_tokens() -> None:
    assert graph_keys(80) == [(16, 2), (32, 4), (64, 8), (80, 10)]
    many = {size: count for size, count in graph_keys(16384) if count > 32}
    assert many == {size: size // 8 for size in many}
    assert max(graph_keys(16384)) == (4096, 32)


def test_a_step_gets_the_smallest_graph_that_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_graphs, "StepGraphs", RerunGraphs)
    graphs = EncoderGraphs(graph_keys(4096))
    assert graphs.key_for(1, 1) is None  # none is captured
    graphs.capture(lambda key: torch.zeros(key))

    steps = [(1, 1), (128, 1), (129, 1), (200, 2), (200, 8), (20, 9), (3000, 20), (3000, 40)]
    assert [graphs.key_for(*step) for step in steps] == [
        (16, 2), (128, 16), (192, 1), (256, 2), (256, 32), (128, 16), (3072, 24), None,
    ]  # fmt: skip
