"""Profiles of the engine's steps, as traces for chrome://tracing and Perfetto."""

import os
import re
import time
from pathlib import Path
from typing import Any

import torch.profiler

from octavo_protocol.errors import ValidationError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class StepProfiler:
    """One profile at a time. folder: where traces go; None: profiling is refused."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._profile: torch.profiler.profile | None = None
        self._name = ""

    def start(self, prefix: str | None = None) -> None:
        """Begins a profile. Raises `ValidationError`."""
        if self._folder is None:
            raise ValidationError(
                "profiling is not configured: start the engine with a profiler folder "
                '(--profiler-config {"profiler": "torch", "torch_profiler_dir": ...})'
            )
        if self._profile is not None:
            raise ValidationError("a profile is running already: stop it first")
        name = "octavo" if prefix is None else prefix
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValidationError(
                "the profile's prefix may have letters, digits and . _ - (at most 100)",
                parameter="profile_prefix",
            )
        self._name = f"{name}-{os.getpid()}-{time.time_ns()}"
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profile = torch.profiler.profile(activities=activities)
        self._profile.start()

    def stop(self) -> str:
        """Ends the profile and returns the path of its trace. Raises `ValidationError`."""
        profile: Any = self._profile
        if profile is None or self._folder is None:
            raise ValidationError("no profile is running")
        self._profile = None
        profile.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._name}.pt.trace.json.gz"
        profile.export_chrome_trace(str(path))
        return str(path)
