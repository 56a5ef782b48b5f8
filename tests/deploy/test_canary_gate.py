"""A canary on a real gateway: beside the active model, held against it, confirmed or taken back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.bundle import Bundle
from edge_runtime.cli.main import main
from edge_runtime.errors import DeploymentReason, DeploymentRefused
from edge_runtime.types import DeploymentPhase, Inference
from tests.deploy.conftest import Models, Plant, desired, document, until


def beside(active: Bundle, canary: Bundle, spec: str, *, probation_s: float = 600.0, health: str = "") -> str:
    """A deployment on `active` with a canary."""
    text = document(active, probation_s=probation_s, health=health)
    return text.replace("slo_ms: 1000", f"slo_ms: 1000, canary: {{digest: '{canary.digest}', {spec}}}")


async def test_a_canary_in_shadow_that_agrees_is_confirmed_and_measured(
    plant: Plant, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    active, better = models.sound(), models.sound("better", gain=40.0)
    seen: list[Inference] = []
    async with plant.running() as gateway:
        gateway.loop.bus.subscribe(Inference, seen.append)
        for bundle in (active, better):
            await plant.install(gateway, bundle)
        await gateway.apply(desired(1, beside(active, better, "mode: shadow", probation_s=1.0), active, better))
        await until(lambda: gateway.reported().phase is DeploymentPhase.CONFIRMED)
        assert gateway.reported().models == {"m": active.digest, "m@canary": better.digest}
        assert {inference.digest for inference in seen} == {active.digest}
        [figures] = gateway._status.status()["canaries"]
        assert (figures["pipeline"], figures["digest"], figures["mode"], figures["divergence"]) == ("p", better.digest, "shadow", 0.0)
        assert figures["compared"] >= 20
        assert await asyncio.to_thread(main, ["status", "--state", str(plant.state_dir)]) == 0
        [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("canary")]
        assert line.startswith("canary    p: m@canary in shadow: differs on 0 of ")
        result = (await until(lambda: plant.heard("canary_result")))[0]
        assert result.startswith("p: m@canary in shadow: differs on 0 of ")
        await gateway.apply(desired(2, document(better), better))
        assert gateway.loop.flow.canaries() == []
        assert len(plant.heard("canary_result")) == 2
        await until(lambda: seen[-1].digest == better.digest)


@pytest.mark.parametrize(
    ("bad", "spec", "told"),
    [
        ("one_class", "mode: shadow", "divergence: models.m@canary of pipelines.p differs on "),
        ("not_a_number", "mode: shadow", "errors: models.m@canary of pipelines.p failed on "),
        ("one_class", "mode: split, percent: 50", "divergence: models.m@canary of pipelines.p is "),
        ("not_a_number", "mode: split", "errors: models.m@canary of pipelines.p failed on "),
    ],
)
async def test_a_canary_that_misbehaves_is_taken_back_and_no_window_goes_without_an_answer(
    plant: Plant, models: Models, bad: str, spec: str, told: str
) -> None:
    active, wrong = models.sound(), getattr(models, bad)()
    async with plant.running() as gateway:
        for bundle in (active, wrong):
            await plant.install(gateway, bundle)
        await gateway.apply(desired(1, document(active), active))
        await gateway.apply(desired(2, beside(active, wrong, spec), active, wrong))
        await until(lambda: gateway.reported().phase is DeploymentPhase.REVERTED)
        report = gateway.reported()
        assert (report.reason, report.running_revision, report.models) == ("unhealthy", 1, {"m": active.digest})
        assert told in report.message
        assert told in plant.heard("deployment_reverted")[0]
        assert plant.heard("canary_result")
        flow, counters = gateway.loop.flow, gateway.loop.flow.counters
        assert counters.errors == 0
        given_up = counters.overruns + counters.outdated + flow.in_flight  # a machine under load
        assert counters.windows == counters.inferences + counters.features + given_up
        with pytest.raises(DeploymentRefused) as refusal:
            await gateway.apply(desired(3, beside(active, wrong, spec), active, wrong))
        assert refusal.value.reason is DeploymentReason.QUARANTINED


async def test_a_split_is_recorded_under_the_model_that_answered(plant: Plant, models: Models) -> None:
    active, better = models.sound(), models.sound("better", gain=40.0)
    seen: list[Inference] = []
    async with plant.running() as gateway:
        gateway.loop.bus.subscribe(Inference, seen.append)
        for bundle in (active, better):
            await plant.install(gateway, bundle)
        text = beside(active, better, "mode: split, percent: 30", probation_s=1.5)
        await gateway.apply(desired(1, text, active, better))
        await until(lambda: gateway.reported().phase is DeploymentPhase.CONFIRMED)
        await until(lambda: gateway._status.status()["canaries"][0]["divergence"] is not None)
        assert {(inference.model, inference.digest) for inference in seen if inference.values} == {
            ("m", active.digest),
            ("m@canary", better.digest),
        }
        [figures] = gateway.loop.flow.canaries()
        assert figures.divergence is not None
        assert figures.divergence <= 0.3
        assert gateway.updates.held_models() == {active.digest, better.digest}
    async with plant.running() as gateway:
        await until(lambda: gateway.loop.flow.canaries() and gateway.loop.flow.canaries()[0].runs)


async def test_a_canary_with_other_classes_is_refused_by_name(plant: Plant, models: Models) -> None:
    active, number = models.sound(), models.number("number", 1.0)
    async with plant.running() as gateway:
        for bundle in (active, number):
            await plant.install(gateway, bundle)
        await gateway.apply(desired(1, document(active), active))
        with pytest.raises(DeploymentRefused, match=r"models.m@canary: its labels are none; expected low, high, as the") as refusal:
            await gateway.apply(desired(2, beside(active, number, "mode: shadow"), active, number))
        assert refusal.value.reason is DeploymentReason.INVALID
        assert (gateway.reported().phase, gateway.reported().running_revision) == (DeploymentPhase.REFUSED, 1)


async def test_a_divergence_that_begins_after_the_confirmation_is_told_once(plant: Plant, models: Models) -> None:
    active, wrong = models.sound(), models.one_class()
    async with plant.running() as gateway:
        for bundle in (active, wrong):
            await plant.install(gateway, bundle)
        await gateway.apply(desired(1, beside(active, wrong, "max_divergence: 0.2", probation_s=0.0), active, wrong))
        assert gateway.reported().phase is DeploymentPhase.CONFIRMED
        await until(lambda: plant.heard("canary_diverged"))
        heard = len(plant.notices)
        gateway._tell_divergence()
        gateway._tell_divergence()
        assert len(plant.notices) == heard
        assert plant.heard("canary_diverged")[0].startswith("p: m@canary in shadow: differs on ")


def test_a_replay_divides_the_windows_alike_every_time(tmp_path: Path, models: Models, capsys: pytest.CaptureFixture[str]) -> None:
    active, better = models.sound(), models.sound("better", gain=40.0)
    for bundle in (active, better):
        bundle.folder.rename(tmp_path / bundle.digest.removeprefix("sha256:"))
    rule = "rules: [{rule: high, when: 'p == \"high\"', then: {open: valve}}]\n"
    (tmp_path / "deployment.yaml").write_text(beside(active, better, "mode: split, percent: 40") + rule)
    times = np.arange(64 * 200) / 6400
    np.savez(tmp_path / "run.npz", t=times, vibration=np.sin(2 * np.pi * 37 * times).astype(np.float32))
    told = []
    for name in ("one", "two"):
        command = ["replay", str(tmp_path / "deployment.yaml"), "--data", str(tmp_path / "run.npz"), "--out", str(tmp_path / name)]
        assert main(command) == 0
        told.append((tmp_path / name).read_bytes())
    assert told[0] == told[1]
    assert active.digest.encode() in told[0]
    assert better.digest.encode() in told[0]
