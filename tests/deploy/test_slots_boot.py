"""What a start does with the slots that it finds: counts, falls back, never crashes."""

from __future__ import annotations

import errno
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.config.deployment import Deployment
from edge_runtime.deploy.disk import Disk
from edge_runtime.deploy.slots import COPY, CURRENT, DOCUMENT, FOLDER
from edge_runtime.deploy.state import State, seal, unseal
from edge_runtime.errors import ConfigError, DeploymentReason, DeploymentRefused, Problem
from edge_runtime.types import DeploymentPhase
from tests.deploy.bare import Bare, flags, offer


@pytest.fixture
def tmp_path(in_memory: Path) -> Path:
    return in_memory


async def pushed(folder: Path, *, probation_s: float = 600.0) -> Bare:
    """`good` confirmed as revision 1, `new` on probation as revision 2."""
    bare = Bare(folder)
    await bare.start()
    await bare.apply(offer(1, "good"))
    await bare.apply(offer(2, "new", probation_s))
    return bare


async def test_the_third_start_without_a_confirmation_reverts_before_the_candidate_is_loaded(tmp_path: Path) -> None:
    await pushed(tmp_path)
    for _ in range(2):
        bare = Bare(tmp_path)
        assert (await bare.start()).slot == "candidate"
    bare = Bare(tmp_path)
    assert bare.chosen.slot == "good"
    await bare.start()
    assert flags(bare) == {"good"}
    report = bare.updates.reported()
    assert (report.phase, report.reason, report.running_revision) == (DeploymentPhase.REVERTED, "crash_loop", 1)
    assert [told[:2] for told in bare.notices] == [("deployment_reverted", "2")]
    with pytest.raises(DeploymentRefused, match="taken back here as revision 2") as refusal:
        await bare.apply(offer(3, "new", 600.0))
    assert refusal.value.reason is DeploymentReason.QUARANTINED
    again = Bare(tmp_path)
    await again.start()
    assert flags(again) == {"good"}
    assert again.notices == []


async def test_graceful_stops_are_no_crashes_and_running_time_adds_up_over_them(tmp_path: Path) -> None:
    bare = await pushed(tmp_path, probation_s=50.0)
    for _ in range(4):
        bare.clock.advance(10.0)
        await bare.updates.tick()
        await bare.updates.stop()
        bare = Bare(tmp_path)
        await bare.start()
        assert bare.chosen.slot == "candidate"
    assert bare.updates.probation() == {"ran_s": 40.0, "of_s": 50.0, "starts": 1}
    bare.clock.advance(10.5)
    await bare.updates.tick()
    assert bare.updates.reported().phase is DeploymentPhase.CONFIRMED


async def test_after_a_crash_the_running_time_noted_last_counts(tmp_path: Path) -> None:
    bare = await pushed(tmp_path, probation_s=40.0)
    bare.clock.advance(7.0)
    await bare.updates.tick()
    bare.clock.advance(3.0)
    await bare.updates.tick()
    bare = Bare(tmp_path)
    await bare.start()
    assert bare.updates.probation() == {"ran_s": 7.0, "of_s": 40.0, "starts": 1}


async def test_starts_that_cannot_be_counted_are_not_taken_with_the_candidate(tmp_path: Path) -> None:
    await pushed(tmp_path)

    def full(step: str, path: Path) -> None:
        if step == "before:write":
            raise OSError(errno.ENOSPC, "No space left on device")

    bare = Bare(tmp_path, Disk(full))
    await bare.start()
    assert flags(bare) == {"good"}
    report = bare.updates.reported()
    assert (report.phase, report.reason, report.running_revision) == (DeploymentPhase.REVERTED, "no_space", 1)
    bare.updates.slots.disk = Disk()
    await bare.updates.tick()
    fresh = Bare(tmp_path)
    await fresh.start()
    assert flags(fresh) == {"good"}
    assert (await fresh.apply(offer(2, "new", 600.0))).phase is DeploymentPhase.PROBATION


async def test_a_damaged_candidate_gives_way_to_the_good_one_and_may_be_pushed_again(tmp_path: Path) -> None:
    bare = await pushed(tmp_path)
    state = bare.updates.state
    assert state.candidate is not None
    path = tmp_path / FOLDER / state.candidate.folder / DOCUMENT
    path.write_bytes(path.read_bytes()[:-5])
    bare = Bare(tmp_path)
    await bare.start()
    assert flags(bare) == {"good"}
    assert "is not what was signed" in bare.notices[0][2]
    assert (await bare.apply(offer(2, "new", 600.0))).phase is DeploymentPhase.PROBATION


async def test_a_damaged_good_one_gives_way_to_the_factory_and_may_be_pushed_again(tmp_path: Path) -> None:
    bare = Bare(tmp_path)
    await bare.start()
    await bare.apply(offer(1, "good"))
    state = bare.updates.state
    assert state.good is not None
    (tmp_path / FOLDER / state.good.folder / DOCUMENT).unlink()
    bare = Bare(tmp_path)
    await bare.start()
    assert flags(bare) == {"factory"}
    assert bare.notices[0][:2] == ("deployment_damaged", "1")
    assert (await bare.apply(offer(1, "good"))).running_revision == 1
    assert flags(bare) == {"good"}


async def test_one_damaged_state_file_is_made_good_by_the_other(tmp_path: Path) -> None:
    await pushed(tmp_path)
    (tmp_path / FOLDER / CURRENT).write_bytes(b"\x00" * 100)
    bare = Bare(tmp_path)
    await bare.start()
    assert flags(bare) == {"new"}
    assert "current damaged; the other copy is used" in bare.notices[0][2]


async def test_with_both_state_files_lost_the_factory_runs_and_no_older_revision_is_taken(tmp_path: Path) -> None:
    await pushed(tmp_path)
    for name in (CURRENT, COPY):
        (tmp_path / FOLDER / name).unlink()
    bare = Bare(tmp_path)
    await bare.start()
    assert flags(bare) == {"factory"}
    with pytest.raises(DeploymentRefused, match="older than 2"):
        await bare.apply(offer(1, "good"))
    assert (await bare.apply(offer(2, "new"))).phase is DeploymentPhase.CONFIRMED


async def test_a_deployment_that_no_longer_fits_this_gateway_gives_way(tmp_path: Path) -> None:
    from edge_runtime.errors import InputError

    await pushed(tmp_path)
    bare = Bare(tmp_path)
    await bare.updates.begin()
    choice = await bare.updates.pass_over(InputError("no sensor"))
    assert choice.slot == "good"
    assert (await bare.updates.pass_over(InputError("no sensor"))).slot == "factory"
    assert [told[0] for told in bare.notices] == ["deployment_reverted", "deployment_damaged"]
    assert (await bare.updates.pass_over(InputError("no sensor"))).deployment == Deployment(schema=1)


async def test_a_deployment_that_enforcing_refuses_is_taken_back(tmp_path: Path) -> None:
    bare = await pushed(tmp_path)
    report = await bare.apply(offer(3, "unfit"))
    assert (report.phase, report.reason, report.running_revision) == (DeploymentPhase.REVERTED, "invalid", 1)
    assert flags(bare) == {"good"}


async def test_a_factory_file_that_does_not_load_matters_only_where_it_is_all_there_is(tmp_path: Path) -> None:
    def broken() -> tuple[Deployment, Path]:
        raise ConfigError([Problem("factory.yaml", 1, "schema", "expected 1")])

    with pytest.raises(ConfigError):
        Bare(tmp_path, factory=broken)
    await pushed(tmp_path)
    for name in (CURRENT, COPY):
        (tmp_path / FOLDER / name).write_bytes(b"")
    bare = Bare(tmp_path, factory=broken)
    await bare.start()
    assert bare.in_force == Deployment(schema=1)
    assert [told[1] for told in bare.notices] == ["slots", "factory"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_no_damage_to_the_files_stops_a_start(tmp_path: Path, data: st.DataObject) -> None:
    template = tmp_path / "template"
    if not template.exists():
        await pushed(template)
    folder = Path(tempfile.mkdtemp(dir=tmp_path)) / "damaged"
    shutil.copytree(template, folder)
    files = sorted(path for path in (folder / FOLDER).rglob("*") if path.is_file())
    for path in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=4, unique=True)):
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        noise = data.draw(st.binary(max_size=40))
        match data.draw(st.sampled_from(["cut", "noise", "gone", "folder", "flip"])):
            case "cut":
                path.write_bytes(whole[:cut])
            case "noise":
                path.write_bytes(whole[:cut] + noise + whole[cut:])
            case "flip" if cut < len(whole):
                path.write_bytes(whole[:cut] + bytes([whole[cut] ^ 0x10]) + whole[cut + 1 :])
            case "folder":
                path.unlink()
                path.mkdir()
            case _:
                path.unlink()
    bare = Bare(folder)
    await bare.start()
    assert flags(bare) in ({"new"}, {"good"}, {"factory"})
    if flags(bare) != {"new"}:
        assert [told for told in bare.notices if told[0] in ("deployment_damaged", "deployment_reverted")]


@given(st.binary(max_size=300))
def test_noise_is_no_state(noise: bytes) -> None:
    assert unseal(noise) is None


def test_a_state_comes_back_as_it_was_and_a_later_format_is_not_guessed() -> None:
    state = State(high_water=7, starts=2)
    assert unseal(seal(state)) == state
    assert unseal(seal(state).replace(b'"v":1', b'"v":2')) is None
