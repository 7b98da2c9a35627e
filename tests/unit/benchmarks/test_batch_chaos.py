"""What the chaos benchmark counts as lost, repeated or wrong, and what it asks beside a batch."""

from typing import Any

from benchmarks.batch_chaos import Tally, online_requests, percentile


def line(custom_id: str, text: str, status: int = 200) -> dict[str, Any]:
    body = {"choices": [{"text": text}]}
    return {"custom_id": custom_id, "response": {"status_code": status, "body": body}}


def test_lines_are_counted_as_lost_repeated_or_wrong() -> None:
    expected = {name: name.upper() for name in "abcde"}
    tally = Tally()
    tally.take(expected, [line(name, name.upper()) for name in "abcde"])
    assert (tally.lost, tally.repeated, tally.wrong) == (0, 0, 0)
    told = [line("a", "A"), line("a", "A"), line("b", "other"), line("c", "C", status=503)]
    tally.take(expected, told)
    assert (tally.lost, tally.repeated, tally.wrong) == (2, 1, 2)


def test_both_measurements_have_the_same_arrivals_and_lengths_but_other_words() -> None:
    alone, beside = (online_requests(50, 2.0, seed=3, words_seed=words) for words in (1, 2))
    assert [each.arrival_s for each in alone] == [each.arrival_s for each in beside]
    for one, other in zip(alone, beside, strict=True):
        assert one.prompt.count(".") == other.prompt.count(".")
    assert len({each.prompt for each in (*alone, *beside)}) == 100
    assert 15 < alone[-1].arrival_s < 35


def test_percentiles_are_of_the_values_themselves() -> None:
    values = [float(i) for i in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 51, 100, 100]
