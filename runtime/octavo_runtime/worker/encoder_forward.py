"""The forward pass of an encoder's step: its inputs on the device, padding, graphs on a GPU.

    prompts      | a0 a1 a2 | b0 b1 | padding 0 0 0 |    padding is a prompt that nobody reads
    starts       0          3       5               8

Steps are padded to few sizes: on a CPU because oneDNN keeps memory for every number of rows that it
has seen, on a GPU to that of the graph that they run as. A step without a graph runs there as it
is.
"""

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo_runtime.layers.encoder_batch import EncoderBatch
from octavo_runtime.worker.gpu.encoder_graphs import EncoderGraphs, GraphKey

Compute = Callable[[EncoderBatch], Tensor]


def padded_size(num_tokens: int) -> int:
    """The next of 16 sizes between a power of two and the next one, 8 apart or more; of 32 sizes
    from 1,024 on, so that steps of long lists of prompts have little padding.
    """
    power = 1 << (num_tokens - 1).bit_length()
    step = max(8, power >> (6 if power > 1024 else 5))
    return -(-num_tokens // step) * step


class EncoderForward:
    """compute: hidden states [num_tokens, hidden_size] of a batch.

    max_model_len: tokens of the longest prompt. reads_types: the model tells the parts of a pair
    apart. graphs: to be captured; without keys: none.
    """

    def __init__(
        self,
        compute: Compute,
        device: torch.device,
        graphs: EncoderGraphs,
        *,
        max_model_len: int,
        reads_types: bool,
    ) -> None:
        self._compute = compute
        self._device = device
        self._graphs = graphs
        self._max_model_len = max_model_len
        self._reads_types = reads_types
        # What graphs read, at places that depend on their key alone.
        size = max((_num_inputs(key) for key in graphs.keys), default=0)
        self._memory = torch.zeros(size, dtype=torch.int32, device=device)

    def run(self, prompts: Sequence[Sequence[int]], token_types: Sequence[Sequence[int]]) -> Tensor:
        """Hidden states, with those of padding after them; valid until the next step.

        token_types: of each prompt; empty: all 0.
        """
        num_tokens = sum(map(len, prompts))
        key = self._graphs.key_for(num_tokens, len(prompts))
        if key is not None:
            inputs = self._on_host(_inputs(prompts, token_types, key))
            self._memory[: len(inputs)].copy_(inputs, non_blocking=True)
            return self._graphs.replay(key)
        size = padded_size(num_tokens) if self._device.type == "cpu" else num_tokens
        key = GraphKey(size, len(prompts))
        inputs = self._on_host(_inputs(prompts, token_types, key))
        longest = max(size - num_tokens, *map(len, prompts))
        memory = inputs.to(self._device, non_blocking=True)
        return self._compute(_batch(memory, key, longest, has_types=any(token_types)))

    def run_each_graph(self) -> None:
        """The step of each graph, without prompts."""
        self._memory.zero_()  # to another graph, what a step has left are other numbers
        for key in self._graphs.keys:
            self._compute_static(key)

    def capture(self) -> None:
        """To follow `run_each_graph`; the weights then stay where they are."""
        self._graphs.capture(self._compute_static)

    def drop_graphs(self) -> None:
        self._graphs.drop()

    def _on_host(self, inputs: NDArray[np.int32]) -> Tensor:
        """In memory from which a GPU takes them later, without being waited for."""
        tensor = torch.from_numpy(inputs)
        return tensor.pin_memory() if self._device.type == "cuda" else tensor

    def _compute_static(self, key: GraphKey) -> Tensor:
        """Padding may be longer than any prompt; attention then leaves some of it out."""
        longest = min(key.num_tokens, self._max_model_len)
        return self._compute(_batch(self._memory, key, longest, has_types=self._reads_types))


def _num_inputs(key: GraphKey) -> int:
    """Token ids, positions and types; where prompts start, padding does, and all ends."""
    return 3 * key.num_tokens + key.num_prompts + 2


def _inputs(
    prompts: Sequence[Sequence[int]], token_types: Sequence[Sequence[int]], key: GraphKey
) -> NDArray[np.int32]:
    """What `_batch` reads. Prompts that are not there are empty, and stand behind the padding."""
    lens = np.array([len(prompt) for prompt in prompts])
    ends = np.cumsum(lens)
    size, num_tokens = key.num_tokens, int(ends[-1])
    inputs = np.zeros(_num_inputs(key), dtype=np.int32)
    inputs[:num_tokens] = np.fromiter(chain.from_iterable(prompts), np.int32, num_tokens)
    inputs[size : size + num_tokens] = np.arange(num_tokens) - np.repeat(ends - lens, lens)
    for end, types in zip(ends.tolist(), token_types, strict=True):
        inputs[2 * size + end - len(types) : 2 * size + end] = types
    starts = inputs[3 * size :]
    starts[1 : len(ends) + 1] = ends
    starts[len(ends) + 1 :] = size
    return inputs


def _batch(memory: Tensor, key: GraphKey, longest: int, *, has_types: bool) -> EncoderBatch:
    size = key.num_tokens
    return EncoderBatch(
        token_ids=memory[:size],
        positions=memory[size : 2 * size],
        token_type_ids=memory[2 * size : 3 * size] if has_types else None,
        query_start_loc=memory[3 * size : _num_inputs(key)],
        max_seq_len=longest,
    )
