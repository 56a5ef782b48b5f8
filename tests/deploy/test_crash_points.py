"""SIGKILL, a full disk, a power cut at every step that an update takes on the disk: the old deployment or the new, whole, never neither."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.deploy.disk import Disk
from edge_runtime.deploy.slots import COPY, CURRENT, FOLDER
from edge_runtime.errors import DeploymentReason, DeploymentRefused
from edge_runtime.types import DeploymentPhase
from tests.deploy.bare import Bare, flags, offer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: hundreds of syncs, whose order is judged here and not what they do to a disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


class Killer:
    """A process whose children apply a deployment and kill themselves on the way."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.deploy.bare"]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def apply(self, state_dir: Path, revision: int, flag: str, kill_at: int, probation_s: float = 0.0) -> tuple[bool, int]:
        """Whether it was killed at that step, and how many steps it came to."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        text = offer(revision, flag, probation_s).document.decode()
        order = {"state": str(state_dir), "revision": revision, "text": text, "kill_at": kill_at}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert answer["status"] in (0, signal.SIGKILL)
        return answer["status"] == signal.SIGKILL, answer["steps"]

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture
def killer() -> Iterator[Killer]:
    killer = Killer()
    yield killer
    killer.close()


async def settled(folder: Path) -> Path:
    """A disk on which `old` is confirmed as revision 1."""
    await (bare := Bare(folder)).start()
    await bare.apply(offer(1, "old"))
    return folder


@pytest.mark.parametrize("probation_s", [0.0, 600.0])
async def test_a_kill_at_any_step_leaves_the_old_or_the_new_and_a_later_push_succeeds(
    tmp_path: Path, killer: Killer, probation_s: float
) -> None:
    template = await settled(tmp_path / "template")
    shutil.copytree(template, tmp_path / "whole")
    killed, steps = killer.apply(tmp_path / "whole", 2, "new", -1, probation_s)
    assert not killed
    assert steps > 30
    seen = []
    for at in range(steps):
        state_dir = shutil.copytree(template, tmp_path / f"at{at}")
        killed, _ = killer.apply(state_dir, 2, "new", at, probation_s)
        assert killed, at
        bare = Bare(state_dir)
        await bare.start()
        assert flags(bare) in ({"old"}, {"new"}), at
        assert not [told for told in bare.notices if told[0] == "deployment_damaged"], at
        seen.append(flags(bare) == {"new"})
        report = bare.updates.reported()
        assert report.running_revision == (2 if seen[-1] else 1)
        assert (await bare.apply(offer(3, "later"))).phase is DeploymentPhase.CONFIRMED
        again = Bare(state_dir)
        await again.start()
        assert flags(again) == {"later"}
        assert not [path for path in (state_dir / FOLDER).iterdir() if path.name.startswith(".new-")]
    assert seen == sorted(seen), "once the new one is in force it stays"
    assert any(seen)
    assert not all(seen)


async def test_a_kill_at_any_step_of_the_first_push_leaves_the_factory_or_the_new(tmp_path: Path, killer: Killer) -> None:
    killed, steps = killer.apply(tmp_path / "whole", 1, "new", -1)
    assert not killed
    for at in range(steps):
        state_dir = tmp_path / f"at{at}"
        state_dir.mkdir()
        killer.apply(state_dir, 1, "new", at)
        bare = Bare(state_dir)
        await bare.start()
        assert flags(bare) in ({"factory"}, {"new"}), at
        assert (await bare.apply(offer(3, "later"))).phase is DeploymentPhase.CONFIRMED


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
async def test_a_disk_that_fails_at_any_step_refuses_the_push_and_the_old_one_goes_on(tmp_path: Path, number: int) -> None:
    template = await settled(tmp_path / "template")
    steps = [0]

    def failing(at: int) -> Disk:
        def told(step: str, path: Path) -> None:
            if step.startswith("before:"):
                steps[0] += 1
                if steps[0] > at:
                    raise OSError(number, "the disk fails", str(path))

        return Disk(told)

    outcomes = set()
    for at in range(60):
        state_dir = shutil.copytree(template, tmp_path / f"at{at}")
        steps[0] = 0
        bare = Bare(state_dir, failing(at))
        await bare.start()
        with contextlib.suppress(DeploymentRefused):
            await bare.apply(offer(2, "new"))
        report = bare.updates.reported()
        outcomes.add(report.phase)
        if report.phase is DeploymentPhase.REFUSED:
            assert report.reason == DeploymentReason.NO_SPACE
        assert report.running_revision == (1 if report.phase is DeploymentPhase.REFUSED else 2)
        assert flags(bare) == ({"old"} if report.phase is DeploymentPhase.REFUSED else {"new"})
        bare.updates.slots.disk = Disk()
        await bare.updates.tick()
        fresh = Bare(state_dir)
        await fresh.start()
        assert flags(fresh) == flags(bare)
        assert (await fresh.apply(offer(3, "later"))).phase is DeploymentPhase.CONFIRMED
        if steps[0] < at:
            break
    else:
        raise AssertionError("the update never came to its end")
    assert outcomes == {DeploymentPhase.REFUSED, DeploymentPhase.CONFIRMED}


class Recorded(Disk):
    """Notes every step, so that a power cut after any of them can be played."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, Path, Path | None, bytes]] = []
        super().__init__()

    def _make(self, folder: Path) -> None:
        super()._make(folder)
        self.steps.append(("make", folder, None, b""))

    def _write(self, path: Path, data: bytes) -> None:
        super()._write(path, data)
        self.steps.append(("write", path, None, data))

    def _sync(self, path: Path) -> None:
        self.steps.append(("sync folder" if path.is_dir() else "sync", path, None, b""))
        super()._sync(path)

    def _rename(self, source: Path, target: Path) -> None:
        super()._rename(source, target)
        self.steps.append(("rename", source, target, b""))

    def remove(self, path: Path) -> None:
        if path.exists():
            self.steps.append(("remove", path, None, b""))
        super().remove(path)


def after_power_cut(
    steps: list[tuple[str, Path, Path | None, bytes]], template: Path, played: Path, origin: Path, *, names_kept: bool
) -> None:
    """The disk after `steps` and a power cut.

    Data that was not synced is gone: the file is empty. A name that was made, moved or removed in a folder that was not synced since is
    lost (`names_kept` false), or has reached the disk by itself before the data did (true).
    """
    shutil.copytree(template, played)

    def here(path: Path) -> Path:
        return played / path.relative_to(origin)

    unsynced: set[Path] = set()
    undo: list[tuple[Path, Any]] = []
    for step, path, target, data in steps:
        place = here(path)
        if step == "make":
            place.mkdir()
            undo.append((place.parent, lambda place=place: shutil.rmtree(place, ignore_errors=True)))
        elif step == "write":
            if not place.exists():
                undo.append((place.parent, lambda place=place: place.unlink(missing_ok=True)))
            place.write_bytes(data)
            unsynced.add(place)
        elif step == "sync":
            unsynced.discard(place)
        elif step == "sync folder":
            undo = [(folder, action) for folder, action in undo if folder != place]
        elif step == "rename":
            assert target is not None
            goal = here(target)
            before = goal.read_bytes() if goal.is_file() else None
            place.rename(goal)
            unsynced = {goal / p.relative_to(place) if p == place or place in p.parents else p for p in unsynced}
            unsynced = {goal if p == place else p for p in unsynced}
            undo = [(goal / f.relative_to(place) if f == place or place in f.parents else f, a) for f, a in undo]
            undo.append((goal.parent, lambda place=place, goal=goal, before=before: _move_back(place, goal, before)))
        elif step == "remove":
            kept = played.parent / f"{played.name}-removed-{len(undo)}"
            place.rename(kept)
            unsynced = {p for p in unsynced if p != place and place not in p.parents}
            undo.append((place.parent, lambda place=place, kept=kept: None if place.exists() else kept.rename(place)))
    for path in unsynced:
        path.write_bytes(b"")
    if not names_kept:
        for _, action in reversed(undo):
            action()


def _move_back(place: Path, goal: Path, before: bytes | None) -> None:
    if not goal.exists():
        return
    goal.rename(place)
    if before is not None:
        goal.write_bytes(before)


@pytest.mark.parametrize("names_kept", [False, True])
@pytest.mark.parametrize("flag", ["new", "old"])
async def test_a_power_cut_after_any_step_leaves_a_whole_deployment(tmp_path: Path, names_kept: bool, flag: str) -> None:
    template = await settled(tmp_path / "template")
    origin = shutil.copytree(template, tmp_path / "origin")
    disk = Recorded()
    bare = Bare(origin, disk)
    await bare.start()
    await bare.apply(offer(2, flag, probation_s=5.0))
    bare.clock.advance(6.0)
    await bare.updates.tick()
    assert bare.updates.reported().phase is DeploymentPhase.CONFIRMED
    assert len(disk.steps) > 20
    for cut in range(len(disk.steps) + 1):
        played = tmp_path / f"cut{cut}"
        after_power_cut(disk.steps[:cut], template, played, origin, names_kept=names_kept)
        fresh = Bare(played)
        await fresh.start()
        assert flags(fresh) in ({"old"}, {flag}), cut
        assert (await fresh.apply(offer(3, "later"))).phase is DeploymentPhase.CONFIRMED
    assert {CURRENT, COPY} <= {path.name for path in (origin / FOLDER).iterdir()}
