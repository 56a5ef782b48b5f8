"""Whether a deployment fits this gateway: what its models take of memory and time, as their probes measured, and the room on the disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from edge_runtime.config.deployment import Deployment
from edge_runtime.config.references import canary_host
from edge_runtime.errors import DeploymentReason, DeploymentRefused
from edge_runtime.types import ProbeReport

_SPARE_MB = 16.0  # of memory left to everyone else
_SPARE_BYTES = 256 * 1024  # of disk, for the state file and its copy
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def judge_fit(deployment: Deployment, reports: Mapping[str, ProbeReport], available_mb: float) -> None:
    """`reports` by the model's name. Raises DeploymentRefused(DOES_NOT_FIT) naming every model or pipeline that asks too much."""
    problems = [*_memory(reports, available_mb), *_latency(deployment, reports), *_load(deployment, reports)]
    if problems:
        raise DeploymentRefused(DeploymentReason.DOES_NOT_FIT, "; ".join(problems))


def _memory(reports: Mapping[str, ProbeReport], available_mb: float) -> list[str]:
    """While old and new models are both loaded, the new ones take what is free now."""
    wanted = sum(report.rss_mb for report in reports.values())
    if wanted <= max(0.0, available_mb - _SPARE_MB) or not reports:
        return []
    each = ", ".join(f"models.{name} {report.rss_mb:.0f} MB" for name, report in reports.items())
    return [
        f"the models take {wanted:.0f} MB ({each}) and {max(0.0, available_mb - _SPARE_MB):.0f} MB are free; name fewer or smaller ones"
    ]


def _latency(deployment: Deployment, reports: Mapping[str, ProbeReport]) -> list[str]:
    return [
        f"models.{name}: one run takes {report.run_ms:.1f} ms here, slo_ms is {deployment.models[canary_host(name)].slo_ms:g}"
        for name, report in reports.items()
        if report.runs and canary_host(name) in deployment.models and report.run_ms > deployment.models[canary_host(name)].slo_ms
    ]


def _load(deployment: Deployment, reports: Mapping[str, ProbeReport]) -> list[str]:
    """Pipelines that run on every window need their model's time for each."""
    busy: dict[str, float] = {}
    for name, spec in deployment.pipelines.items():
        report = reports.get(spec.model or "")
        if report is not None and report.runs and spec.trigger.kind == "window" and spec.input[0] in deployment.sensors:
            per_s = deployment.sensors[spec.input[0]].rate_hz / (spec.window.hop or spec.window.size)
            busy[name] = report.run_ms * per_s / 1000
    problems = [
        f"pipelines.{name}: its model needs {share:.0%} of the time between two windows; raise window.hop or take a smaller model"
        for name, share in busy.items()
        if share > 1
    ]
    cores = os.cpu_count() or 1
    if not problems and sum(busy.values()) > cores:
        problems.append(f"the pipelines need {sum(busy.values()):.1f} cores together, here are {cores}")
    return problems


def require_room(folder: Path, size_bytes: int) -> None:
    """Raises DeploymentRefused(NO_SPACE) before anything is written."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        stat = os.statvfs(folder)
    except OSError:
        return  # unknown: whoever writes will be told
    free = stat.f_bavail * stat.f_frsize
    if free < size_bytes + _SPARE_BYTES:
        raise DeploymentRefused(
            DeploymentReason.NO_SPACE, f"{folder} has {free} bytes free, expected {size_bytes + _SPARE_BYTES}; clear some"
        )


def available_mb() -> float:
    """Memory that this process may still take: the machine's, or its cgroup's where that is less. Unknown: infinite."""
    found = [_machine_mb(), _cgroup_mb()]
    return min(value for value in [*found, float("inf")] if value is not None)


def _machine_mb() -> float | None:
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup_mb() -> float | None:
    """cgroup v2, of this process; what the kernel can drop of the page cache counts as free."""
    try:
        own = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2]
        folder = _CGROUP / own.lstrip("/")
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return (int(limit) - used + int(stat.get("inactive_file", 0))) / 2**20
    except (OSError, ValueError):
        return None
