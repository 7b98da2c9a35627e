"""How many cores this process may use: what affinity and the container's quota leave of them."""

import math
import os
from pathlib import Path

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(quota_file: Path = _CGROUP_QUOTA) -> int:
    """At least 1; a quota of 1.5 cores counts as 2."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _quota(quota_file)
    return max(1, cores or 1 if quota is None else min(cores or 1, quota))


def _quota(path: Path) -> int | None:
    """Cores that the control group grants, rounded up; None where there is no limit."""
    try:
        quota, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else math.ceil(int(quota) / int(period))
