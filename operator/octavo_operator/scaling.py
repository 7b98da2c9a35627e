"""How many replicas the load asks for, and which of them may go first.

All from the replicas' own records:

    queue        prompt tokens that wait / (prefill rate of one replica x seconds allowed)
    utilisation  sum over replicas of max(KV cache in use, sequence slots in use) / target
    wanted       the larger, within the bounds

While replicas start, the queue grows because they are not there yet. So they count as coming until
they have served for as long as they took to start; meanwhile the seconds allowed include the age of
the first of them, and the quotient counts beside the other replicas. The same queue never asks
twice. A queue at most doubles the replicas at a time.

More replicas come when every number in the scale-up window was higher, fewer when every number in
the scale-down window was lower. Nothing is scaled while the numbers are not all known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil, inf

from octavo_operator.observed import Recommendation
from octavo_operator.replicas import Failure, Replica, Stage
from octavo_protocol.records import ReplicaRecord
from octavo_protocol.resources.model_deployment import AutoscalingSpec

# Sums of shares are rounded up; what only arithmetic adds must not become a replica.
_EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Load:
    """What the ready replicas report. prefill_rate: tokens per second of one; 0 = not known.

    recent: ready ones that count as coming. coming_s: how long the oldest that is starting or
    recent exists. utilization: sum over the ready replicas of their shares in use.
    """

    ready: int
    recent: int
    starting: int
    coming_s: float
    waiting_tokens: int
    prefill_rate: float
    utilization: float


@dataclass(frozen=True, slots=True)
class Scaling:
    """wanted: what the numbers ask for now, bounds aside; None where they are not known.

    replicas: what is to be. reason: the numbers, as they are now.
    """

    replicas: int
    wanted: int | None
    reason: str
    recommendations: tuple[Recommendation, ...]


def measured(replicas: Sequence[Replica], now: datetime, start_seconds: int) -> Load:
    """start_seconds: how long a replica may take; what takes longer is not waited for longer."""
    ready = [each for each in replicas if each.stage is Stage.READY and each.record is not None]
    records = [each.record for each in ready if each.record is not None]
    rates = [each.prefill_tokens_per_s for each in records if 0 < each.prefill_tokens_per_s < inf]
    recent = [each for each in ready if _is_recent(each, now)]
    starting = [each for each in replicas if _is_starting(each)]
    age = max((now - (each.created or now) for each in (*recent, *starting)), default=timedelta())
    return Load(
        ready=len(ready),
        recent=len(recent),
        starting=len(starting),
        coming_s=min(max(0.0, age.total_seconds()), 2.0 * start_seconds),
        waiting_tokens=sum(each.waiting_tokens for each in records),
        prefill_rate=sum(rates) / len(rates) if rates else 0.0,
        utilization=sum(_share(each) for each in records),
    )


def _is_recent(replica: Replica, now: datetime) -> bool:
    created, since = replica.created, replica.ready_since
    return created is not None and since is not None and now - since < since - created


def _is_starting(replica: Replica) -> bool:
    """It will add to the capacity by itself, or when a node comes for it."""
    if replica.failure is not None:
        return replica.failure is Failure.UNSCHEDULABLE
    return replica.stage in (Stage.PENDING, Stage.LOADING)


def _share(record: ReplicaRecord) -> float:
    slots = record.running / record.max_num_seqs if record.max_num_seqs > 0 else 0.0
    return max(_fraction(record.kv_usage), _fraction(slots))


def _fraction(number: float) -> float:
    """Within 0 and 1, whatever a record says."""
    return number if 0 <= number <= 1 else float(number > 1)


def wanted(load: Load, spec: AutoscalingSpec) -> tuple[int, str]:
    """Replicas that the load asks for, bounds aside, and why. Never fewer for more load."""
    by_queue, queue_reason = _wanted_by_queue(load, spec.target_queue_seconds)
    by_use, use_reason = _wanted_by_utilization(load, spec.target_utilization_percent)
    return max((by_queue, queue_reason), (by_use, use_reason), key=lambda each: each[0])


def _wanted_by_queue(load: Load, target_s: int) -> tuple[int, str]:
    if load.waiting_tokens == 0 or load.prefill_rate == 0:
        return 0, "no prompt waits"
    seconds = load.waiting_tokens / load.prefill_rate
    most = 2 * (load.ready + load.starting)
    needed = ceil(min(seconds / (target_s + load.coming_s), most) - _EPSILON)
    if load.starting or load.recent:
        needed += load.ready - load.recent
    return min(needed, most), (
        f"{load.waiting_tokens} prompt tokens wait at {load.ready} replicas of "
        f"{load.prefill_rate:.0f} tokens/s each, {seconds / max(1, load.ready):.1f} s of work; "
        f"{target_s} s are allowed"
    )


def _wanted_by_utilization(load: Load, percent: int) -> tuple[int, str]:
    target = percent / 100
    needed = ceil(load.utilization / target - _EPSILON)
    mean = load.utilization / max(1, load.ready)
    return needed, (
        f"{mean:.0%} of KV cache or sequence slots of {load.ready} replicas are in use; "
        f"{percent}% is aimed at"
    )


def scale(
    load: Load | None,
    spec: AutoscalingSpec,
    current: int,
    history: Sequence[Recommendation],
    now: datetime,
) -> Scaling:
    """The number of replicas from now on. load: None where the replicas' numbers are not known.

    An empty history, as after a restart, counts as if `current` had been asked for until now.
    """
    bounded = _bounded(current, spec)
    remembered = tuple(history) or (Recommendation(now, bounded),)
    if load is None or load.ready == 0:
        return Scaling(bounded, None, "the bounds", remembered)
    number, reason = wanted(load, spec)
    remembered = _remembered((*remembered, Recommendation(now, _bounded(number, spec))), spec, now)
    lowest = min(_within(remembered, spec.scale_up_window_seconds, now))
    highest = max(_within(remembered, spec.scale_down_window_seconds, now))
    if lowest > bounded:
        return Scaling(_bounded(lowest, spec), number, reason, remembered)
    if highest < bounded:
        return Scaling(_bounded(highest, spec), number, reason, remembered)
    return Scaling(bounded, number, "the bounds", remembered)


def _bounded(replicas: int, spec: AutoscalingSpec) -> int:
    return min(max(replicas, spec.min_replicas), spec.max_replicas)


def _within(history: Sequence[Recommendation], seconds: int, now: datetime) -> list[int]:
    """The numbers that held at some moment of the window: each holds until the next one."""
    start = now - timedelta(seconds=seconds)
    ends = [*(each.time for each in history[1:]), now + timedelta(seconds=1)]
    return [each.replicas for each, end in zip(history, ends, strict=True) if end > start]


def _remembered(
    history: Sequence[Recommendation], spec: AutoscalingSpec, now: datetime
) -> tuple[Recommendation, ...]:
    """What either window still needs. An entry that repeats the one before says nothing new."""
    longest = max(spec.scale_up_window_seconds, spec.scale_down_window_seconds)
    start = now - timedelta(seconds=longest)
    kept: list[Recommendation] = []
    for index, each in enumerate(history):
        is_over = index + 1 < len(history) and history[index + 1].time <= start
        if not is_over and (not kept or kept[-1].replicas != each.replicas):
            kept.append(each)
    return tuple(kept)


def deletion_costs(replicas: Sequence[Replica]) -> dict[str, int]:
    """By pod: what its removal would cost, in prompt tokens; the cheapest goes first.

    A replica that serves costs what it computes now and what its prefix cache has spared so far:
    what was hit often will be asked for again. One that does not serve costs nothing.
    """
    return {each.name: _cost(each) for each in replicas if each.stage is not Stage.DRAINING}


def _cost(replica: Replica) -> int:
    record = replica.record
    if replica.stage is not Stage.READY or record is None:
        return 0
    held = _fraction(record.kv_usage) * record.num_blocks * record.block_size
    return min(2**31 - 1, 1 + int(held) + record.waiting_tokens + record.prefix_hit_tokens)
