"""The doctor's findings and their advice."""

import json
from pathlib import Path

import pytest

from octavo import doctor
from octavo.doctor import Finding, Level
from octavo.local.machine import usable_cores

OLD_CPU = "processor : 0\nmodel name : Old\nflags : sse sse2\n\nprocessor : 1\nflags : sse\n"
PLAIN_CPU = "model name : Plain\nflags : avx2 f16c avx512f\n"
NEW_CPU = "model name : New\nflags : avx2 f16c avx512f avx512_bf16 amx_bf16\n"


@pytest.mark.parametrize(
    ("cpuinfo", "value", "level"),
    [
        (OLD_CPU, "no AVX2", Level.NOTE),
        (PLAIN_CPU, "avx2 f16c avx512f", Level.NOTE),
        (NEW_CPU, "avx2 f16c avx512f avx512_bf16 amx_bf16", Level.OK),
    ],
)
def test_cpu_features_are_judged(tmp_path: Path, cpuinfo: str, value: str, level: Level) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)

    cpu, features = doctor._cpu(path)

    assert cpu.value.startswith(cpuinfo.split("model name : ")[1].split("\n")[0])
    assert (features.value, features.level) == (value, level)


def test_unknown_cpu_is_no_failure(tmp_path: Path) -> None:
    assert doctor._cpu(tmp_path / "none")[1] == Finding("cpu features", "unknown")


def test_report_covers_everything_and_serialises() -> None:
    findings = doctor.examine(port=8000)

    topics = {finding.topic for finding in findings}
    assert {"system", "python", "cpu", "memory", "disk", "gpu", "torch", "redis server"} <= topics
    assert [item["topic"] for item in json.loads(doctor.as_json(findings))] == [
        finding.topic for finding in findings
    ]


def test_advice_stands_below_its_finding() -> None:
    table = doctor.as_table(
        [Finding("a", "fine"), Finding("bb", "gone", Level.MISSING, "install bb")]
    )

    assert table.splitlines() == [
        "  a   fine",
        "! bb  gone",
        "      -> install bb",
        "",
        "1 missing (!). 0 could be better (~).",
    ]


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("50000 100000", 1), ("100000 100000", 1), ("garbage", None), ("max 1", None)],
)
def test_container_quota_bounds_the_cores(tmp_path: Path, quota: str, cores: int | None) -> None:
    path = tmp_path / "cpu.max"
    path.write_text(quota)

    assert usable_cores(path) == (cores or usable_cores(tmp_path / "none"))


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tool of that name which finds one GPU, alone on the path; an empty kernel cache."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB, 570.1'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "kernels"))
    return tool


def versions(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    monkeypatch.setattr(doctor, "_version", installed.get)


def test_gpu_is_named_with_the_cache_of_its_kernels(
    nvidia_smi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions(monkeypatch, torch="2.13.0+cu130", triton="3.6.0")
    folder = tmp_path / "kernels"
    gpu = Finding("gpu", "NVIDIA H200, 143771 MiB, 570.1")

    cold = Finding("kernel cache", f"{folder} (empty: the first start compiles)")
    assert doctor._gpu() == [gpu, cold]
    folder.mkdir()
    assert doctor._gpu() == [gpu, Finding("kernel cache", str(folder))]


@pytest.mark.parametrize(
    ("installed", "advice"),
    [
        ({"torch": "2.13.0+cpu", "triton": "3.6.0"}, "install a CUDA build of it"),
        ({"torch": "2.13.0"}, "pip install triton"),
    ],
)
def test_gpu_that_cannot_be_used_says_what_to_install(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], advice: str
) -> None:
    versions(monkeypatch, **installed)
    [finding] = doctor._gpu()
    assert finding.level is Level.NOTE
    assert advice in finding.advice


def test_gpu_whose_driver_fails_and_none_at_all(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi.write_text("#!/bin/sh\nexit 9\n")
    [failing] = doctor._gpu()
    assert (failing.level, failing.value) == (Level.NOTE, "nvidia-smi fails")

    nvidia_smi.unlink()
    assert doctor._gpu() == [Finding("gpu", "none (no nvidia-smi); models run on the CPU")]


def test_a_compiler_is_needed_with_a_gpu_alone(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    missing = doctor._compiler()
    assert (missing.level, missing.value) == (Level.NOTE, "none")
    assert "apt-get install gcc" in missing.advice

    clang = nvidia_smi.with_name("clang")
    clang.write_text("#!/bin/sh\n")
    clang.chmod(0o755)
    assert doctor._compiler() == Finding("compiler", str(clang))

    nvidia_smi.unlink()
    assert doctor._compiler() == Finding("compiler", "none needed")
