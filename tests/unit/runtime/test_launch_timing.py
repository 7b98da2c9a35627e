"""When the next step is launched: late enough for arrivals, early enough for the device."""

import pytest

from octavo_runtime.engine.launch_timing import LaunchTiming, StepShape

DECODES = StepShape.of(16, has_prompts=False)
PROMPT = StepShape.of(512, has_prompts=True)


def run_steps(timing: LaunchTiming, seconds: list[float], *, launch_s: float = 0.001) -> float:
    """One after the other, each launched as the one before it ends; the end of the last."""
    now = 0.0
    for step_s in seconds:
        timing.launched(DECODES, now - launch_s, now)
        now += step_s
        timing.finished(step_s, now)
    return now


def test_the_launch_waits_until_it_takes_the_rest_of_the_step() -> None:
    timing = LaunchTiming()
    now = run_steps(timing, [0.005] * 3)
    timing.launched(DECODES, now, now + 0.001)

    spare_s = timing.spare_s(now + 0.001, has_prompts=False)

    assert spare_s == pytest.approx(0.005 - 0.001 - 0.001 - 0.0003)
    assert timing.spare_s(now + 0.005, has_prompts=False) == 0.0


def test_a_launch_with_prompts_waits_for_less_because_it_takes_longer() -> None:
    timing = LaunchTiming()
    timing.launched(PROMPT, 0.0, 0.003)
    timing.finished(0.02, 0.02)
    now = 0.02 + run_steps(timing, [0.005])
    timing.launched(DECODES, now, now + 0.001)

    plain, with_prompts = (timing.spare_s(now, has_prompts=each) for each in (False, True))

    assert plain - with_prompts == pytest.approx(0.002)


@pytest.mark.parametrize("has_prompts", [False, True])
def test_nothing_waits_for_what_is_not_known(has_prompts: bool) -> None:
    timing = LaunchTiming()
    assert timing.spare_s(0.0, has_prompts=has_prompts) == 0.0
    timing.launched(DECODES, 0.0, 0.001)
    assert timing.spare_s(0.0, has_prompts=has_prompts) == 0.0
    timing.finished(None, 0.005)
    timing.launched(DECODES, 0.005, 0.006)
    assert timing.spare_s(0.006, has_prompts=has_prompts) == 0.0


def test_nothing_waits_while_a_step_waits_already() -> None:
    timing = LaunchTiming()
    now = run_steps(timing, [0.005] * 2)
    timing.launched(DECODES, now, now)
    assert timing.spare_s(now, has_prompts=False) > 0
    timing.launched(DECODES, now, now)
    assert timing.spare_s(now, has_prompts=False) == 0.0


def test_a_short_step_counts_at_once_and_a_long_one_slowly() -> None:
    timing = LaunchTiming()
    run_steps(timing, [0.005, 0.004])
    now = 0.1
    timing.launched(DECODES, now, now)
    short = timing.spare_s(now, has_prompts=False)
    timing.finished(0.014, now + 0.014)
    now = 0.2
    timing.launched(DECODES, now, now)
    longer = timing.spare_s(now, has_prompts=False)

    # The launches have grown shorter meanwhile: 0.001 to 0.0009, and to 0.00081.
    assert short == pytest.approx(0.004 - 0.0009 - 0.0003)
    assert longer == pytest.approx(0.005 - 0.00081 - 0.0003)


def test_an_end_that_is_noticed_late_moves_no_expected_end() -> None:
    """The host was busy with a launch while the step before it ended."""
    timing = LaunchTiming()
    now = run_steps(timing, [0.005] * 2)
    timing.launched(DECODES, now, now)
    timing.launched(DECODES, now + 0.001, now + 0.002)
    timing.finished(0.005, now + 0.007)  # it ended at 0.005

    spare_s = timing.spare_s(now + 0.007, has_prompts=False)

    assert spare_s == pytest.approx(0.01 - 0.001 - 0.0003 - 0.007)
