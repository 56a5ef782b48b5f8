"""SIGKILL, a full disk, a power cut at every step that an update takes on the disk: the old deployment or the new, whole, never neither."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
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
def tmp_path(in_memory: Path) -> Path:
    return in_memory


class Killer:
    """A process whose children apply a deployment and kill themselves on the way."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.deploy.bare"]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def apply(
        self, state_dir: Path, revision: int, flag: str, kill_at: int, probation_s: float = 0.0, *, revert: bool = False
    ) -> tuple[bool, int]:
        """Whether it was killed at that step, and how many steps it came to."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        text = offer(revision, flag, probation_s).document.decode()
        order = {"state": str(state_dir), "revision": revision, "text": text, "kill_at": kill_at, "revert": revert}
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


async def test_a_kill_at_any_step_of_a_revert_leaves_the_new_one_on_probation_or_the_old_one_and_its_quarantine(
    tmp_path: Path, killer: Killer
) -> None:
    template = await settled(tmp_path / "template")
    _, applied = killer.apply(shutil.copytree(template, tmp_path / "applied"), 2, "new", -1, 600.0)
    _, steps = killer.apply(shutil.copytree(template, tmp_path / "whole"), 2, "new", -1, 600.0, revert=True)
    assert steps > applied + 10
    outcomes = []
    for at in range(applied, steps):
        state_dir = shutil.copytree(template, tmp_path / f"at{at}")
        killed, _ = killer.apply(state_dir, 2, "new", at, 600.0, revert=True)
        assert killed, at
        bare = Bare(state_dir)
        await bare.start()
        report = bare.updates.reported()
        outcomes.append(report.phase)
        if report.phase is DeploymentPhase.PROBATION:
            assert (flags(bare), bare.updates.probation()["starts"]) == ({"new"}, 1), at
            continue
        assert (report.phase, report.reason, flags(bare)) == (DeploymentPhase.REVERTED, DeploymentReason.UNHEALTHY, {"old"}), at
        for revision in (2, 3):
            with pytest.raises(DeploymentRefused) as refusal:
                await bare.apply(offer(revision, "new", 600.0))
            assert refusal.value.reason is DeploymentReason.QUARANTINED
        assert (await bare.apply(offer(4, "later"))).phase is DeploymentPhase.CONFIRMED
    assert outcomes == sorted(outcomes, key=lambda phase: phase is DeploymentPhase.REVERTED), "once it is taken back it stays so"
    assert set(outcomes) == {DeploymentPhase.PROBATION, DeploymentPhase.REVERTED}


async def test_a_disk_that_is_full_at_any_step_of_a_revert_does_not_keep_the_bad_one_in_force(tmp_path: Path) -> None:
    template = await settled(tmp_path / "template")
    left = [10**6]

    def told(step: str, path: Path) -> None:
        left[0] -= step.startswith("before:")
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    for at in range(40):
        state_dir = shutil.copytree(template, tmp_path / f"at{at}")
        left[0] = 10**6
        bare = Bare(state_dir, Disk(told))
        await bare.start()
        await bare.apply(offer(2, "new", 600.0))
        left[0] = at
        await bare.updates.revert(DeploymentReason.UNHEALTHY, "errors: every run failed")
        report = bare.updates.reported()
        assert (flags(bare), report.phase, report.reason) == ({"old"}, DeploymentPhase.REVERTED, "unhealthy"), at
        finished = left[0] >= 0
        left[0] = 10**6
        await bare.updates.tick()
        fresh = Bare(state_dir)
        await fresh.start()
        assert flags(fresh) == {"old"}, at
        with pytest.raises(DeploymentRefused) as refusal:
            await fresh.apply(offer(3, "new", 600.0))
        assert refusal.value.reason is DeploymentReason.QUARANTINED
        if finished:
            return
    raise AssertionError("the revert never came to its end")


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


Steps = list[tuple[str, Path, Path | None, bytes]]


@dataclass
class Unsynced:
    """A change of a folder that may be lost: the name `path` that it made, moved or removed, and how to take it back."""

    folder: Path
    path: Path
    undo: Callable[[Path], object]

    def moved(self, source: Path, target: Path) -> None:
        """The name, or a folder above it, has another name now."""
        self.folder, self.path = _moved(self.folder, source, target), _moved(self.path, source, target)


class PowerCut:
    """A disk on which steps are played, so that those that were not synced can be lost.

    Data that was not synced is gone: the file is empty. Of the names made, moved or removed in a folder that was not synced since, the one
    numbered `lost` is taken back; -1: all of them, None: none.
    """

    def __init__(self, template: Path, played: Path, origin: Path) -> None:
        shutil.copytree(template, played)
        self.names: list[Unsynced] = []
        self._played = played
        self._origin = origin
        self._data: set[Path] = set()

    def play(self, steps: Steps, lost: int | None) -> None:
        """Plays the steps, then cuts the power."""
        for step, path, target, data in steps:
            getattr(self, "_" + step.replace(" ", "_"))(self._here(path), self._here(target) if target else None, data)
        for each in self._data:
            each.write_bytes(b"")
        for index in reversed(range(len(self.names))):
            if lost in (-1, index):
                self.names[index].undo(self.names[index].path)

    def _make(self, place: Path, target: Path | None, data: bytes) -> None:
        place.mkdir()
        self.names.append(Unsynced(place.parent, place, lambda at: shutil.rmtree(at, ignore_errors=True)))

    def _write(self, place: Path, target: Path | None, data: bytes) -> None:
        if not place.exists():
            self.names.append(Unsynced(place.parent, place, lambda at: at.unlink(missing_ok=True)))
        place.write_bytes(data)
        self._data.add(place)

    def _sync(self, place: Path, target: Path | None, data: bytes) -> None:
        self._data.discard(place)

    def _sync_folder(self, place: Path, target: Path | None, data: bytes) -> None:
        self.names = [name for name in self.names if name.folder != place]

    def _rename(self, place: Path, goal: Path | None, data: bytes) -> None:
        assert goal is not None
        before = goal.read_bytes() if goal.is_file() else None
        place.rename(goal)
        self._data = {_moved(each, place, goal) for each in self._data}
        for name in self.names:
            name.moved(place, goal)
        self.names.append(Unsynced(goal.parent, goal, partial(_move_back, place, before)))

    def _remove(self, place: Path, target: Path | None, data: bytes) -> None:
        kept = self._played.parent / f"{self._played.name}-removed-{len(self.names)}-{place.name}"
        place.rename(kept)
        self._data = {each for each in self._data if each != place and place not in each.parents}
        self.names.append(Unsynced(place.parent, place, lambda at: None if at.exists() else kept.rename(at)))

    def _here(self, path: Path) -> Path:
        return self._played / path.relative_to(self._origin)


def _moved(path: Path, source: Path, target: Path) -> Path:
    return target / path.relative_to(source) if path == source or source in path.parents else path


def _move_back(place: Path, before: bytes | None, goal: Path) -> None:
    if goal.exists():
        goal.rename(place)
        if before is not None:
            goal.write_bytes(before)


@pytest.mark.parametrize(("flag", "revert"), [("new", False), ("old", False), ("new", True)])
async def test_a_power_cut_after_any_step_leaves_a_whole_deployment(tmp_path: Path, flag: str, revert: bool) -> None:
    template = await settled(tmp_path / "template")
    origin = shutil.copytree(template, tmp_path / "origin")
    disk = Recorded()
    bare = Bare(origin, disk)
    await bare.start()
    await bare.apply(offer(2, flag, probation_s=5.0))
    told = len(disk.steps)
    if revert:
        await bare.updates.revert(DeploymentReason.UNHEALTHY, "errors: every run failed")
    else:
        bare.clock.advance(6.0)
        await bare.updates.tick()
        assert bare.updates.reported().phase is DeploymentPhase.CONFIRMED
    done = len(disk.steps)
    assert len(disk.steps) > 20
    for cut in range(len(disk.steps) + 1):
        count = 0
        for lost in (None, -1, *range(16)):
            if lost is not None and lost >= count:
                break
            disk_after = PowerCut(template, played := tmp_path / f"{cut}-{lost}", origin)
            disk_after.play(disk.steps[:cut], lost)
            count = len(disk_after.names)
            fresh = Bare(played)
            await fresh.start()
            certain = {flag} if not revert and cut >= told else {"old"} if revert and cut == done else None
            assert flags(fresh) in ((certain,) if certain else ({"old"}, {flag})), (cut, lost, disk.steps[cut - 1])
            assert (await fresh.apply(offer(3, "later"))).phase is DeploymentPhase.CONFIRMED
    assert {CURRENT, COPY} <= {path.name for path in (origin / FOLDER).iterdir()}
