"""Tokens that rank 0 samples, on their way to the other ranks: from device to device, in order."""

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo_runtime.layers.sampling.rows import SamplingRow
from octavo_runtime.parallel.group import Group
from octavo_runtime.worker.gpu.device_sampler import DeviceSamples, StepSampler, to_host
from octavo_runtime.worker.gpu.staging import SampleInputs


class _FirstRank:
    def __init__(self, sampler: StepSampler, group: Group) -> None:
        self._sampler = sampler
        self._group = group

    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow], inputs: SampleInputs
    ) -> tuple[Tensor, DeviceSamples]:
        token_ids, samples = self._sampler.sample(logits, rows, inputs)
        return self._group.broadcast(token_ids), samples


class _OtherRank:
    def __init__(self, group: Group) -> None:
        self._group = group

    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow], inputs: SampleInputs
    ) -> tuple[Tensor, DeviceSamples]:
        token_ids = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
        self._group.broadcast(token_ids)
        return token_ids, DeviceSamples(rows, to_host(token_ids), None, {})


def shared_sampler(sampler: StepSampler, group: Group) -> StepSampler:
    """`sampler` on rank 0; on the others what that one has drawn."""
    return _FirstRank(sampler, group) if group.rank == 0 else _OtherRank(group)
