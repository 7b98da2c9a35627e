"""Merged deltas say what the single ones say, in order, whoever is slow."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_protocol.errors import GenerationError
from octavo_protocol.outputs import CompletionOutput, Logprob, RequestOutput
from octavo_protocol.sampling_params import RequestOutputKind
from octavo_runtime.engine.output_collector import OutputCollector

# What a step brings: for some of three samples, a few tokens.
STEPS = st.lists(
    st.dictionaries(st.integers(0, 2), st.lists(st.integers(0, 9), max_size=3), min_size=1),
    min_size=1,
    max_size=12,
)


def delta(step: dict[int, list[int]], *, finished: bool) -> RequestOutput:
    outputs = [
        CompletionOutput(
            index=index,
            text="".join(map(str, token_ids)),
            token_ids=token_ids,
            logprobs=[{token: Logprob(-1.0, 1, str(token))} for token in token_ids],
            finish_reason="stop" if finished else None,
        )
        for index, token_ids in step.items()
    ]
    return RequestOutput("r", None, [1], outputs=outputs, finished=finished)


@given(STEPS, st.lists(st.integers(1, 4), min_size=12, max_size=12))
def test_slow_reader_gets_the_same_tokens_in_fewer_outputs(
    steps: list[dict[int, list[int]]], pauses: list[int]
) -> None:
    async def run() -> list[RequestOutput]:
        collector = OutputCollector(RequestOutputKind.DELTA)
        got: list[RequestOutput] = []
        unread = 0
        for number, step in enumerate(steps):
            collector.put(delta(step, finished=number == len(steps) - 1))
            unread += 1
            if unread >= pauses[number]:
                got.append(await collector.get())
                unread = 0
        if unread:
            got.append(await collector.get())
        return got

    got = asyncio.run(run())
    for index in range(3):
        wanted = [token for step in steps for token in step.get(index, [])]
        mine = [each for output in got for each in output.outputs if each.index == index]
        assert [token for each in mine for token in each.token_ids] == wanted
        assert "".join(each.text for each in mine) == "".join(map(str, wanted))
        assert [next(iter(e)) for each in mine for e in each.logprobs or []] == wanted
    assert [output.finished for output in got] == [False] * (len(got) - 1) + [True]


async def test_cumulative_output_replaces_the_unread_one() -> None:
    collector = OutputCollector(RequestOutputKind.CUMULATIVE)
    collector.put(delta({0: [1]}, finished=False))
    collector.put(delta({0: [1, 2]}, finished=True))

    assert (await collector.get()).outputs[0].token_ids == [1, 2]


async def test_error_comes_after_what_was_there_and_again_at_each_call() -> None:
    collector = OutputCollector(RequestOutputKind.DELTA)
    collector.put(delta({0: [1]}, finished=False))
    collector.put(GenerationError("the engine died"))

    assert (await collector.get()).outputs[0].token_ids == [1]
    for _ in range(2):
        with pytest.raises(GenerationError, match="died"):
            await collector.get()


async def test_reader_that_was_cancelled_loses_nothing() -> None:
    collector = OutputCollector(RequestOutputKind.DELTA)
    waiting = asyncio.create_task(collector.get())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    collector.put(delta({0: [7]}, finished=True))

    assert (await collector.get()).outputs[0].token_ids == [7]
