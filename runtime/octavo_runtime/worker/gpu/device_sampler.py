"""Sampling on the device; rows with rules of their own are sampled on the host.

Plain rows (`is_plain`) never leave the device: their tokens go to the next step and, in one copy,
to the host. All others need what the host knows of them; their logits are copied there, and the
sampler of the CPU draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from octavo_kernels.sampling import gather_logprobs, sample_tokens
from octavo_runtime.layers.sampling.logprobs import TokenScores
from octavo_runtime.layers.sampling.rows import SamplingRow, is_plain
from octavo_runtime.layers.sampling.sampler import SampledRow, Sampler
from octavo_runtime.worker.gpu.staging import SampleInputs


@dataclass(frozen=True, slots=True)
class DeviceScores:
    """Log-probabilities of a batch, copied to the host asynchronously.

    values: [num_rows] of the sampled tokens; ranks: [num_rows]; top_values, top_ids: [num_rows, n].
    """

    values: Tensor
    ranks: Tensor
    top_values: Tensor
    top_ids: Tensor


@dataclass(frozen=True, slots=True)
class DeviceSamples:
    """Sampled tokens of a batch, on their way to the host. To be read after the step's end."""

    rows: Sequence[SamplingRow]
    token_ids: Tensor
    scores: DeviceScores | None
    of_host: dict[int, SampledRow]

    def read(self) -> list[SampledRow]:
        """One per row."""
        token_ids: list[int] = self.token_ids.tolist()
        sampled = [SampledRow(token_id) for token_id in token_ids]
        if self.scores is not None:
            values, ranks = self.scores.values.tolist(), self.scores.ranks.tolist()
            top_ids, top_values = self.scores.top_ids.tolist(), self.scores.top_values.tolist()
            for i, row in enumerate(self.rows):
                if (n := row.params.logprobs) is not None and i not in self.of_host:
                    ids, best = [token_ids[i], *top_ids[i][:n]], [values[i], *top_values[i][:n]]
                    sampled[i] = SampledRow(token_ids[i], TokenScores(ids, best, ranks[i]))
        for i, row_of_host in self.of_host.items():
            sampled[i] = row_of_host
        return sampled


class StepSampler(Protocol):
    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow], inputs: SampleInputs
    ) -> tuple[Tensor, DeviceSamples]:
        """(token ids [len(rows)] int64 on the device, the same on their way to the host).

        logits: [len(rows), vocab_size]. inputs: of these rows, in their order.
        """


class DeviceSampler:
    """host_sampler: draws for the rows that are not plain; all of them with `is_all_on_host`."""

    def __init__(self, host_sampler: Sampler, *, is_all_on_host: bool) -> None:
        self._host_sampler = host_sampler
        self._is_all_on_host = is_all_on_host

    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow], inputs: SampleInputs
    ) -> tuple[Tensor, DeviceSamples]:
        """See `StepSampler`."""
        count = len(rows)
        token_ids = sample_tokens(
            logits,
            inputs.temperature[:count],
            inputs.top_k[:count],
            inputs.top_p[:count],
            inputs.min_p[:count],
            inputs.seed[:count],
            inputs.position[:count],
            has_filters=any(_has_filters(row) for row in rows),
        )
        of_host = self._sample_on_host(logits, rows)
        if of_host:
            places = torch.tensor(list(of_host), device=logits.device)
            drawn = torch.tensor([row.token_id for row in of_host.values()], device=logits.device)
            token_ids[places] = drawn
        scores = None
        wanted = [
            row.params.logprobs
            for i, row in enumerate(rows)
            if row.params.logprobs is not None and i not in of_host
        ]
        if wanted:
            parts = gather_logprobs(logits, token_ids, min(max(1, *wanted), logits.shape[-1]))
            scores = DeviceScores(*(to_host(part) for part in parts))
        return token_ids, DeviceSamples(rows, to_host(token_ids), scores, of_host)

    def _sample_on_host(self, logits: Tensor, rows: Sequence[SamplingRow]) -> dict[int, SampledRow]:
        places = [
            i for i, row in enumerate(rows) if self._is_all_on_host or not is_plain(row.params)
        ]
        if not places:
            return {}
        some = logits if len(places) == len(rows) else logits[places]
        sampled = self._host_sampler.sample(some.cpu(), [rows[i] for i in places])
        return dict(zip(places, sampled, strict=True))


def new_event(device: torch.device) -> torch.cuda.Event | None:
    """After all that was launched so far; None where launches are waited for."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _has_filters(row: SamplingRow) -> bool:
    params = row.params
    is_filtered = params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0
    return is_filtered and not params.is_greedy


def to_host(tensor: Tensor) -> Tensor:
    """A copy that is there when the device has come to it."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return host.copy_(tensor, non_blocking=True)
