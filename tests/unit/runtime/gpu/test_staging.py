"""What a step sends arrives at the same places, whole, however often the host copies rotate."""

import numpy as np
import torch

from octavo_runtime.worker.gpu.staging import StepStaging


def test_every_array_arrives_at_its_place() -> None:
    staging = StepStaging(torch.device("cpu"), max_sequences=3, max_tokens=8, max_blocks=5)
    places = {name: getattr(staging.changes, name).data_ptr() for name in ("rows", "tokens")}

    for turn in range(5):
        staging.write(
            {
                "rows": [2, turn],
                "query_start_loc": [0, 1, 8],
                "tokens": range(turn, turn + 8),
                "blocks": [turn] * 5,
                "temperature": [0.5, 1.0],
                "seed": np.array([2**64 - 1, turn], dtype=np.uint64).view(np.int64),
            }
        )
        changes, samples = staging.changes, staging.samples
        assert changes.rows[:2].tolist() == [2, turn]
        assert changes.query_start_loc[:3].tolist() == [0, 1, 8]
        assert changes.tokens.tolist() == list(range(turn, turn + 8))
        assert changes.blocks.tolist() == [turn] * 5
        assert samples.temperature[:2].tolist() == [0.5, 1.0]
        assert samples.seed[:2].tolist() == [-1, turn]
        assert {name: getattr(changes, name).data_ptr() for name in places} == places
