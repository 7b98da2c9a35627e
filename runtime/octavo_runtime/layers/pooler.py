"""Hidden states to what requests ask for: vectors, classes or scores.

    rows of a prompt ─ CLS | LAST | MEAN ─┬─ dense heads ─ cut to dimensions ─ length 1    embed
    rows of a prompt ─ ALL | STEP ────────┴─ classifier ─ (x - mean) / sigma ─ activation  classify

Prompts that ask for the same go through each stage together.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from octavo_runtime.layers.dense_head import Dense
from octavo_runtime.pooling import TOKEN_TASKS, PoolingConfig, PoolPart

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": torch.sigmoid,
    "identity": lambda logits: logits,
}


@dataclass(frozen=True, slots=True)
class _Finish:
    """What becomes of pooled rows."""

    is_vector: bool
    use_activation: bool
    dimensions: int | None


class Pooler:
    """head: rows [n, hidden_size] to logits [n, num_labels], of models that classify.

    Raises `ConfigError` for dense heads that cannot be read.
    """

    def __init__(
        self,
        config: PoolingConfig,
        head: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._config = config
        self._head = head
        self._dense = [Dense(each, device) for each in config.dense]

    def __call__(self, hidden: Tensor, parts: Sequence[PoolPart]) -> list[Tensor]:
        """One fp32 tensor per part: [size], and [num_tokens, size] of token-level tasks.

        hidden: [num_rows, hidden_size].
        """
        results: list[Tensor | None] = [None] * len(parts)
        groups: dict[_Finish, list[int]] = defaultdict(list)
        for index, part in enumerate(parts):
            if part.params.task in TOKEN_TASKS:
                rows = hidden[part.start : part.stop]
                finished = self._finished(rows, self._finish(part), hidden.dtype)
                results[index] = self._chosen(finished, part)
            else:
                groups[self._finish(part)].append(index)
        for finish, members in groups.items():
            pooled = self._summaries(hidden, [parts[index] for index in members])
            finished = self._finished(pooled, finish, hidden.dtype)
            for index, result in zip(members, finished, strict=True):
                results[index] = result
        return [result for result in results if result is not None]

    def _finish(self, part: PoolPart) -> _Finish:
        params = part.params
        use = params.use_activation
        return _Finish(
            is_vector=params.task in ("embed", "token_embed"),
            use_activation=self._config.use_activation if use is None else use,
            dimensions=params.dimensions,
        )

    def _summaries(self, hidden: Tensor, parts: Sequence[PoolPart]) -> Tensor:
        """One row for each part: [len(parts), hidden_size]."""
        match self._config.seq_pooling_type:
            case "CLS":
                return hidden[_places([part.start for part in parts], hidden.device)]
            case "LAST":
                return hidden[_places([part.stop - 1 for part in parts], hidden.device)]
            case "MEAN":
                return _means(hidden, parts)

    def _finished(self, rows: Tensor, finish: _Finish, dtype: torch.dtype) -> Tensor:
        """rows: [n, hidden_size] → [n, size] fp32. dtype: of the model and its classifier."""
        if finish.is_vector:
            rows = rows.float()
            for dense in self._dense:
                rows = dense(rows)
            rows = rows[:, : finish.dimensions]
            return functional.normalize(rows, dim=-1) if finish.use_activation else rows
        assert self._head is not None, "only classifiers classify"
        logits = self._head(rows.to(dtype)).float()
        if self._config.logit_mean is not None:
            logits = logits - self._config.logit_mean
        if self._config.logit_sigma is not None:
            logits = logits / self._config.logit_sigma
        return _ACTIVATIONS[self._config.activation](logits) if finish.use_activation else logits

    def _chosen(self, rows: Tensor, part: PoolPart) -> Tensor:
        """Of a prompt's tokens and their columns those that the request or the model asks for."""
        params, config = part.params, self._config
        is_step = config.tok_pooling_type == "STEP" and params.task == "token_classify"
        columns = params.returned_token_ids or (config.returned_token_ids if is_step else None)
        if columns:
            rows = rows[:, list(columns)]
        tag = config.step_tag_id if params.step_tag_id is None and is_step else params.step_tag_id
        if tag is None:
            return rows
        wanted = [place for place, token in enumerate(part.prompt_token_ids) if token == tag]
        return rows[wanted]


def _places(numbers: Sequence[int], device: torch.device) -> Tensor:
    """int64, without waiting for what the device does."""
    return torch.tensor(numbers).to(device, non_blocking=True)


def _means(hidden: Tensor, parts: Sequence[PoolPart]) -> Tensor:
    """The mean row of each part, in fp32."""
    edges = sorted({0, len(hidden), *(p.start for p in parts), *(p.stop for p in parts)})
    lengths = _places([stop - start for start, stop in pairwise(edges)], hidden.device)
    # unsafe: the lengths' sum is not checked, for which it would wait for the device
    means = torch.segment_reduce(hidden.float(), "mean", lengths=lengths, unsafe=True)
    place = {edge: index for index, edge in enumerate(edges)}
    return means[_places([place[part.start] for part in parts], hidden.device)]
