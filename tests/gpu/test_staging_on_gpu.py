"""Pinned memory is not written again before the device has taken what is in it."""

import pytest
import torch

from octavo_runtime.worker.gpu.staging import StepStaging

pytestmark = pytest.mark.gpu


def test_a_host_far_ahead_of_the_device_overwrites_nothing() -> None:
    staging = StepStaging(torch.device("cuda"), max_sequences=3, max_tokens=8, max_blocks=5)
    torch.cuda._sleep(100_000_000)  # type: ignore[no-untyped-call]
    arrived = []
    for turn in range(10):
        staging.write({"rows": [turn], "tokens": [turn] * 8, "blocks": [turn]})
        changes = staging.changes
        arrived.append(torch.stack([changes.rows[0], changes.tokens[7], changes.blocks[0]]))

    assert [each.tolist() for each in arrived] == [[turn] * 3 for turn in range(10)]
