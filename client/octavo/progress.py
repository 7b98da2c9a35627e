"""Progress bars, by tqdm or by what the caller brings."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from octavo_protocol.outputs import RequestOutput
from octavo_protocol.pooling import PoolingOutput, PoolingRequestOutput

Item = TypeVar("Item")
# False or None: none; True: tqdm; else a factory with tqdm's arguments.
ProgressBar = bool | Callable[..., Any] | None


def watched(items: Iterable[Item], use_tqdm: ProgressBar, total: int, label: str) -> Iterator[Item]:
    """The items, each one counted when the next is asked for."""
    with progress_bar(use_tqdm, total, label) as bar:
        for item in items:
            yield item
            if bar is not None:
                bar.update(1)


@contextmanager
def progress_bar(use_tqdm: ProgressBar, total: int, label: str) -> Iterator[Any]:
    """A bar that is closed at the end; None where none is wanted."""
    if not use_tqdm:
        yield None
        return
    if use_tqdm is True:
        from tqdm.auto import tqdm
    else:
        tqdm = use_tqdm
    bar = tqdm(total=total, desc=label, dynamic_ncols=True)
    try:
        yield bar
    finally:
        bar.close()


class TokenRates:
    """Says on a bar how many tokens a second went in and out."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._num_input = self._num_output = 0

    def finished(self, output: RequestOutput | PoolingRequestOutput[PoolingOutput]) -> None:
        """One request has ended."""
        if self._bar is None:
            return
        self._num_input += len(output.prompt_token_ids or ())
        if isinstance(output, RequestOutput):
            self._num_output += sum(len(each.token_ids) for each in output.outputs)
        elapsed = self._bar.format_dict["elapsed"] or 1e-9
        self._bar.postfix = (
            f"est. speed input: {self._num_input / elapsed:.2f} toks/s, "
            f"output: {self._num_output / elapsed:.2f} toks/s"
        )
        self._bar.update(1)
