"""An offer from the door to its end, on a real gateway in this process."""

from __future__ import annotations

import asyncio
import re

import pytest

from edge_runtime.app import Gateway
from edge_runtime.cli.main import main
from edge_runtime.errors import DeploymentReason, DeploymentRefused
from edge_runtime.types import DeploymentPhase, Inference
from tests.deploy.conftest import Models, Plant, desired, document, until


async def test_a_good_push_is_confirmed_and_is_what_the_next_start_runs_without_its_factory_file(plant: Plant, models: Models) -> None:
    bundle = models.sound()
    async with plant.running() as gateway:
        assert gateway.reported().phase is DeploymentPhase.FACTORY
        await plant.install(gateway, bundle)
        report = await gateway.apply(desired(3, document(bundle), bundle))
        assert (report.phase, report.slot, report.running_revision) == (DeploymentPhase.CONFIRMED, "good", 3)
        assert report.running_digest == report.digest == desired(3, document(bundle)).digest
        assert report.models == {"m": bundle.digest}
        await until(lambda: gateway.loop.flow.counters.inferences > 3)
        assert gateway.reported() == report
    assert plant.heard("deployment_staged")
    assert plant.heard("deployment_confirmed")
    (plant.folder / "factory.yaml").unlink()
    async with plant.running() as gateway:
        assert gateway.reported() == report
        await until(lambda: gateway.loop.flow.counters.inferences > 3)


async def test_what_runs_already_changes_nothing_and_restarts_nothing(plant: Plant, models: Models) -> None:
    bundle = models.sound()
    text = document(bundle)
    async with plant.running() as gateway:
        await plant.install(gateway, bundle)
        first = await gateway.apply(desired(1, text, bundle))
        handle, written = gateway.served.handles["m"], gateway.updates.slots.disk.written_bytes
        assert await gateway.apply(desired(1, text, bundle)) == first
        assert gateway.served.handles["m"] is handle
        assert gateway.updates.slots.disk.written_bytes == written
        renumbered = await gateway.apply(desired(5, text, bundle))
        assert gateway.served.handles["m"] is handle
        assert (renumbered.running_revision, renumbered.revision, renumbered.phase) == (5, 5, DeploymentPhase.CONFIRMED)
    async with plant.running() as gateway:
        assert gateway.reported() == renumbered


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (DeploymentReason.OLD_REVISION, "revision 1 is older than 2"),
        (DeploymentReason.MALFORMED, "expected a document of sha256:"),
        (DeploymentReason.INVALID, "unknown key `nonsense`"),
        (DeploymentReason.UNKNOWN_MODEL, "not among the models signed"),
        (DeploymentReason.MODEL_UNAVAILABLE, "not in the model store; fetch it first"),
        (DeploymentReason.MODEL_REFUSED, "golden_mismatch"),
        (DeploymentReason.DOES_NOT_FIT, "slo_ms is 1e-06"),
    ],
)
async def test_what_cannot_run_is_refused_by_name_and_what_runs_goes_on(
    plant: Plant, models: Models, reason: DeploymentReason, told: str
) -> None:
    bundle, wrong = models.sound(), models.wrong_golden()
    text = document(bundle)
    offers = {
        DeploymentReason.OLD_REVISION: desired(1, document(None)),
        DeploymentReason.MALFORMED: desired(3, text, bundle).__class__(3, "sha256:" + "0" * 64, text.encode(), 2**62, (bundle.digest,)),
        DeploymentReason.INVALID: desired(3, text + "nonsense: true\n", bundle),
        DeploymentReason.UNKNOWN_MODEL: desired(3, text + "flags: {other: true}\n"),
        DeploymentReason.MODEL_UNAVAILABLE: desired(3, document(models.number("absent", 1.0)), models.number("absent2", 1.0)),
        DeploymentReason.MODEL_REFUSED: desired(3, document(wrong), wrong),
        DeploymentReason.DOES_NOT_FIT: desired(3, text.replace("slo_ms: 1000", "slo_ms: 0.000001"), bundle),
    }
    offer = offers[reason]
    if reason is DeploymentReason.MODEL_UNAVAILABLE:
        offer = desired(3, document(bundle).replace(bundle.digest, "sha256:" + "1" * 64))
        offer = offer.__class__(3, offer.digest, offer.document, 2**62, ("sha256:" + "1" * 64,))
    async with plant.running() as gateway:
        for each in (bundle, wrong):
            await plant.install(gateway, each)
        before = await gateway.apply(desired(2, text, bundle))
        handle = gateway.served.handles["m"]
        with pytest.raises(DeploymentRefused, match=re.escape(told)) as refusal:
            await gateway.apply(offer)
        assert refusal.value.reason is reason
        report = gateway.reported()
        assert (report.running_revision, report.running_digest, report.slot) == (2, before.running_digest, "good")
        assert gateway.served.handles["m"] is handle
        if reason is not DeploymentReason.OLD_REVISION:
            assert (report.revision, report.phase, report.reason) == (3, DeploymentPhase.REFUSED, reason.value)
            assert told in report.message
        assert len(plant.heard("deployment_refused")) == 1
        assert [path.name for path in (plant.state_dir / "deployments").iterdir() if path.is_dir()] == [f"2-{before.digest[7:23]}"]
    async with plant.running() as gateway:
        assert gateway.reported() == report


@pytest.mark.parametrize(
    ("bad", "told"),
    [("one_class", "drift: pipelines.p"), ("not_a_number", "errors: "), ("slow", "latency: the 99th percentile")],
)
async def test_a_model_that_misbehaves_only_after_start_is_taken_back_and_quarantined(
    plant: Plant, models: Models, bad: str, told: str
) -> None:
    good = models.sound()
    wrong = models.slow_after(30) if bad == "slow" else getattr(models, bad)()
    async with plant.running() as gateway:
        for bundle in (good, wrong):
            await plant.install(gateway, bundle)
        before = await gateway.apply(desired(1, document(good), good))
        await until(lambda: gateway.watch.vitals().answers["p"].count >= 100)
        text = document(wrong, probation_s=600, health=", max_p99_ms: 30, max_error_rate: 1" if bad == "slow" else "")
        during = await gateway.apply(desired(2, text, wrong))
        assert (during.revision, during.phase in (DeploymentPhase.PROBATION, DeploymentPhase.REVERTED)) == (
            2,
            True,
        )  # the gate may be quick
        await until(lambda: gateway.reported().phase is DeploymentPhase.REVERTED)
        await until(lambda: gateway.served.handles["m"].digest == good.digest and gateway.updates.running.slot == "good")
        report = gateway.reported()
        assert (report.running_revision, report.running_digest) == (1, before.running_digest)
        assert (report.revision, report.reason) == (2, "unhealthy")
        assert told in report.message
        assert report.quarantined == (during.digest,)
        assert told in plant.heard("deployment_reverted")[0]
        seen: list[Inference] = []
        gateway.loop.bus.subscribe(Inference, seen.append)
        await until(lambda: len(seen) > 20 and {inference.digest for inference in seen[-20:]} == {good.digest})
        for offer in (desired(2, text, wrong), desired(3, text, wrong), desired(4, "# again\nrevision: 9\n" + text, wrong)):
            with pytest.raises(DeploymentRefused, match="quarantined: the same content was taken back here as revision 2") as refusal:
                await gateway.apply(offer)
            assert refusal.value.reason is DeploymentReason.QUARANTINED
        other = await gateway.apply(desired(5, document(good) + "flags: {other: true}\n", good))
        assert (other.phase, other.running_revision) == (DeploymentPhase.CONFIRMED, 5)


async def test_a_rule_that_fires_far_more_often_is_taken_back(plant: Plant, models: Models) -> None:
    good, flapping = models.sound(), models.sound("other")
    rules = "rules: [{rule: high, when: 'p == \"high\"', then: {open: valve}}]\n"
    async with plant.running() as gateway:
        await plant.install(gateway, flapping)
        await plant.install(gateway, good)
        await gateway.apply(desired(1, document(good), good))
        await gateway.apply(desired(2, document(flapping, probation_s=600, rules=rules), flapping))
        await until(lambda: gateway.reported().phase is DeploymentPhase.REVERTED)
        assert "rules: `high` fired" in gateway.reported().message


async def test_a_probation_that_ends_well_is_confirmed_and_the_old_deployment_cleared_away(plant: Plant, models: Models) -> None:
    first, second = models.sound(), models.sound("other", gain=40.0)
    async with plant.running() as gateway:
        for bundle in (first, second):
            await plant.install(gateway, bundle)
        await gateway.apply(desired(1, document(first), first))
        await until(lambda: gateway.watch.vitals().answers["p"].count >= 100)
        waiting = asyncio.create_task(gateway.deployment_changed())
        report = await gateway.apply(desired(2, document(second, probation_s=1.5), second))
        await waiting
        assert report.phase is DeploymentPhase.PROBATION
        assert gateway._status.status()["slots"]["probation"]["of_s"] == 1.5
        await until(lambda: gateway.reported().phase is DeploymentPhase.CONFIRMED)
        assert gateway.reported().running_revision == 2
        slots = plant.state_dir / "deployments"
        await until(lambda: [path.name for path in slots.iterdir() if path.is_dir()] == [f"2-{report.digest[7:23]}"])


async def test_a_newer_offer_supersedes_one_on_probation_and_a_revert_goes_back_to_the_good_one(plant: Plant, models: Models) -> None:
    good, bad = models.sound(), models.not_a_number()
    async with plant.running() as gateway:
        for bundle in (good, bad):
            await plant.install(gateway, bundle)
        await gateway.apply(desired(1, document(good), good))
        await gateway.apply(desired(2, document(good, probation_s=600), good))
        await gateway.apply(desired(3, document(bad, probation_s=600), bad))
        assert plant.heard("deployment_reverted") == ["2: superseded: revision 3 came before it was confirmed"]
        await until(lambda: gateway.reported().phase is DeploymentPhase.REVERTED)
        assert gateway.reported().running_revision == 1
        again = await gateway.apply(desired(4, document(good, probation_s=600), good))
        assert again.phase is DeploymentPhase.PROBATION


async def test_readings_flow_on_while_a_deployment_is_tried_and_loaded(plant: Plant, models: Models) -> None:
    bundle = models.sound()
    async with plant.running() as gateway:
        await plant.install(gateway, bundle)
        seqs: list[int] = []
        from edge_runtime.types import Reading

        gateway.loop.bus.subscribe(Reading, lambda reading: seqs.append(reading.seq))
        await until(lambda: len(seqs) > 3)
        before = len(seqs)
        await gateway.apply(desired(1, document(bundle), bundle))
        assert len(seqs) > before + 10
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
        assert gateway.loop.flow.counters.lost == {}
        assert gateway.store.ledger().dropped == {}


async def test_a_caller_that_goes_away_stops_nothing(plant: Plant, models: Models) -> None:
    bundle = models.sound()
    async with plant.running() as gateway:
        await plant.install(gateway, bundle)
        caller = asyncio.create_task(gateway.apply(desired(1, document(bundle), bundle)))
        await asyncio.sleep(0)
        caller.cancel()
        await until(lambda: gateway.reported().phase is DeploymentPhase.CONFIRMED)


async def test_an_archive_of_another_bundle_is_refused_and_leaves_nothing(plant: Plant, models: Models) -> None:
    from models.archive import pack

    mine, other = models.sound(), models.one_class()
    pack(mine, plant.folder / "a.tar")
    (plant.folder / "b.tar").write_bytes((plant.folder / "a.tar").read_bytes()[:2000])
    async with plant.running() as gateway:
        for archive, digest in ((plant.folder / "a.tar", other.digest), (plant.folder / "b.tar", mine.digest)):
            with pytest.raises(DeploymentRefused) as refusal:
                await gateway.install_model(archive, digest)
            assert refusal.value.reason is DeploymentReason.MODEL_REFUSED
            assert not gateway.has_model(mine.digest)
            assert not gateway.has_model(other.digest)
        assert [path for path in (plant.state_dir / "models").glob("[!.]*") if path.is_dir()] == []


async def test_models_of_every_slot_outlive_a_full_model_store(plant: Plant, models: Models) -> None:
    good, candidate, fetched = models.sound(), models.sound("other"), models.sound("third")
    size = 1_048_576
    (plant.folder / "gateway.yaml").write_text((plant.folder / "gateway.yaml").read_text() + f"store: {{models_max_bytes: {size}}}\n")
    async with plant.running() as gateway:
        for bundle in (good, candidate, fetched):
            await plant.install(gateway, bundle)
        await gateway.apply(desired(1, document(good), good))
        await gateway.apply(desired(2, document(candidate, probation_s=600), candidate))
        gone = await asyncio.to_thread(gateway.models.collect, 0, gateway.updates.held_models())
        assert gone == [fetched.digest]
        assert gateway.has_model(good.digest)
        assert gateway.has_model(candidate.digest)


async def test_status_tells_the_slots_and_the_last_offer(plant: Plant, models: Models, capsys: pytest.CaptureFixture[str]) -> None:
    async def told(gateway: Gateway) -> list[str]:
        assert await asyncio.to_thread(main, ["status", "--state", str(plant.state_dir)]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith(("running", "offered"))]

    good = models.sound()
    async with plant.running() as gateway:
        assert await told(gateway) == ["running   revision 0 from the factory slot"]
        await plant.install(gateway, good)
        await gateway.apply(desired(1, document(good), good))
        await gateway.apply(desired(2, document(good, probation_s=600), good))
        running, offered = await told(gateway)
        assert running.startswith("running   revision 2 from the candidate slot, on probation for ")
        assert running.endswith("of 600 s (else back to revision 1)")
        assert offered == "offered   revision 2 PROBATION"
        with pytest.raises(DeploymentRefused):
            await gateway.apply(desired(3, "schema: 1\nnonsense: 1\n"))
        assert (await told(gateway))[1].startswith("offered   revision 3 REFUSED: invalid: deployment.yaml:2:nonsense: unknown key")


async def test_a_reload_does_not_undo_a_push(plant: Plant, models: Models) -> None:
    good = models.sound()
    async with plant.running() as gateway:
        await plant.install(gateway, good)
        before = await gateway.apply(desired(1, document(good), good))
        gateway.reload()
        await until(lambda: plant.heard("deployment_refused"))
        assert plant.heard("deployment_refused") == ["factory: revision 1 was pushed and is in force"]
        assert gateway.reported() == before
