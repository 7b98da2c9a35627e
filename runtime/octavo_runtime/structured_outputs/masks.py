"""Token masks of a step, computed beside its forward pass."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import fill_next_token_bitmask_par
from numpy.typing import NDArray

_MAX_THREADS = 8


class MaskComputer:
    """Masks of many matchers at once, in the library's threads, without the GIL."""

    def __init__(self, vocab_size: int, num_threads: int) -> None:
        self._num_words = -(-vocab_size // 32)
        self._executor = LLExecutor(num_threads=max(1, min(num_threads, _MAX_THREADS)))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")

    def start(
        self, matchers: Mapping[int, LLMatcher]
    ) -> Callable[[], Mapping[int, NDArray[np.int32]]]:
        """Begins to compute; the result waits for the masks, by the same keys.

        The matchers must not be touched before that.
        """
        masks = np.empty((len(matchers), self._num_words), dtype=np.int32)
        work = [(matcher, index) for index, matcher in enumerate(matchers.values())]
        done = self._thread.submit(fill_next_token_bitmask_par, self._executor, work, masks)

        def wait() -> Mapping[int, NDArray[np.int32]]:
            done.result()
            return dict(zip(matchers, masks, strict=True))

        return wait

    def close(self) -> None:
        self._thread.shutdown()
