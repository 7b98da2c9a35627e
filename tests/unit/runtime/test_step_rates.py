"""The engine's measured speed, with background work and without."""

from octavo_runtime.engine.step_rates import StepRates


def test_steps_with_background_work_count_only_while_no_others_were_seen() -> None:
    rates = StepRates()
    rates.add(100, 0, 1.0, has_background=True)
    rates.add(8, 8, 1.0, has_background=True)
    assert (rates.prefill_tokens_per_s, rates.decode_tokens_per_s) == (100, 8)
    rates.add(400, 0, 1.0)
    rates.add(32, 32, 1.0)
    rates.add(10, 0, 1.0, has_background=True)
    assert (rates.prefill_tokens_per_s, rates.decode_tokens_per_s) == (400, 32)


def test_what_says_little_is_left_out_and_the_rest_is_smoothed() -> None:
    rates = StepRates()
    for num_tokens, num_decodes, seconds in [(0, 0, 1.0), (100, 0, 0.0), (15, 0, 1.0), (9, 8, 1.0)]:
        rates.add(num_tokens, num_decodes, seconds)
    assert (rates.prefill_tokens_per_s, rates.decode_tokens_per_s) == (0, 0)
    rates.add(100, 0, 1.0)
    rates.add(200, 0, 1.0)
    assert rates.prefill_tokens_per_s == 110
