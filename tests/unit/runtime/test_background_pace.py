"""Steps with background work are short where others ask, and never long without end."""

from octavo_runtime.engine.background_pace import BackgroundPace


def test_there_is_no_limit_before_the_speed_is_known() -> None:
    assert BackgroundPace().budget(0, has_foreground=True, tokens_per_s=0) is None


def test_a_step_is_short_beside_and_between_others_and_a_second_alone() -> None:
    pace = BackgroundPace()
    seen = [
        pace.budget(now, has_foreground=has_foreground, tokens_per_s=1000)
        for now, has_foreground in ((0, False), (5, True), (6, False), (14.9, False), (15, False))
    ]
    assert seen == [1000, 20, 20, 20, 1000]


def test_a_slow_engine_still_goes_on() -> None:
    assert BackgroundPace().budget(0, has_foreground=True, tokens_per_s=20) == 8
