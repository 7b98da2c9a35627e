"""Custom logits processors: what they are told of the batch, when they act, how they are loaded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.runtime.sampling.processors import KeepsBest, OnlyToken
from tests.unit.runtime.sampling.rows import greedy, random_logits, row, sample

from octavo_protocol.errors import ConfigError
from octavo_runtime.layers.sampling.processors import (
    LogitsProcessors,
    batch_update,
    load_processor_classes,
)
from octavo_runtime.layers.sampling.sampler import Sampler

HERE = "tests.unit.runtime.sampling.processors"


def only() -> OnlyToken:
    return OnlyToken(None, "cpu", False)


def sampler(*processors: OnlyToken) -> Sampler:
    return Sampler("raw_logprobs", LogitsProcessors(processors))


@given(batches=st.lists(st.lists(st.integers(0, 9), unique=True, max_size=8), max_size=8))
def test_a_processor_that_follows_the_updates_knows_every_row(batches: list[list[int]]) -> None:
    rows = [greedy(extra_args={"only": token}) for token in range(10)]
    processor = only()
    update = sampler(processor)._processors
    assert update is not None
    for batch in batches:
        update.update([rows[i] for i in batch])
        assert [processor.tokens[i] for i in range(len(batch))] == batch


def test_an_equal_batch_is_no_update() -> None:
    rows = [greedy(), greedy()]

    assert batch_update(rows, list(rows)) is None
    assert batch_update(rows, rows[::-1]) is not None


def test_an_added_row_hands_over_its_tokens_which_grow() -> None:
    sequence = greedy(prompt=(1, 2), output=(3,))

    update = batch_update([], [sequence])
    sequence.append(4)

    assert update is not None
    assert update.batch_size == 1
    [(index, params, prompt, output)] = update.added
    assert (index, list(prompt), output) == (0, [1, 2], [3, 4])
    assert params is sequence.params


def test_a_processor_s_choice_holds_for_greedy_and_drawn_rows() -> None:
    rows = [greedy(extra_args={"only": 5}), row(seed=1), row(seed=2, extra_args={"only": 7})]
    values = random_logits(3, 20)
    with_processor = sampler(only())

    first = [each.token_id for each in sample(values, rows, with_processor)]
    second = [each.token_id for each in sample(values.flip(0), rows[::-1], with_processor)]
    third = [each.token_id for each in sample(values[1:], rows[1:], with_processor)]

    free = sample(values, [greedy(), rows[1], greedy()])[1].token_id
    assert first == [5, free, 7]
    assert second == [7, free, 5]
    assert third == [free, 7]


def test_raw_logprobs_do_not_see_what_processors_do() -> None:
    values = random_logits(1, 20)
    best = int(values.argmax())

    [sampled] = sample(values, [greedy(extra_args={"only": 5}, logprobs=1)], sampler(only()))

    assert sampled.scores is not None
    assert sampled.scores.token_ids == [5, best]
    assert sampled.scores.values[0] < sampled.scores.values[1]


def test_penalties_come_after_processors_that_change_the_best_token() -> None:
    values = random_logits(1, 20)

    sequence = greedy(extra_args={"only": 5}, presence_penalty=2.0, output=(5, 5))

    assert sample(values, [sequence], sampler(only()))[0].token_id == 5


def test_a_processor_that_keeps_the_best_token_acts_on_drawn_rows() -> None:
    values = random_logits(40, 20)
    rows = [row(seed=i, temperature=1.5) for i in range(40)]

    processor = KeepsBest(None, "cpu", False)

    assert [each.token_id for each in sample(values, rows, sampler(processor))] == values.argmax(
        -1
    ).tolist()


def test_classes_are_loaded_by_name() -> None:
    assert load_processor_classes([f"{HERE}:OnlyToken", f"{HERE}:KeepsBest"]) == [
        OnlyToken,
        KeepsBest,
    ]
    assert load_processor_classes([]) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:Class", "cannot be loaded .*: write module:Class"),
        (f"{HERE}:Missing", "cannot be loaded .*: write module:Class"),
        (HERE, "cannot be loaded .*: write module:Class"),
        ("", "cannot be loaded .*: write module:Class"),
        (f"{HERE}:only_token", "must be a class with the methods apply"),
        ("builtins:int", "must be a class with the methods apply"),
    ],
)
def test_what_cannot_be_loaded_is_a_configuration_error(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_processor_classes([name])
