"""Takes an offered deployment from the door to its end: tried, staged, switched, on probation, then confirmed or taken back.

One task does all of it, one offer after the other, so that whoever asked may go away meanwhile. What runs goes on until the new one is
loaded; what is on the disk is always one deployment or the other. It decides nothing itself: `state` knows the moves, `health` the gate.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from edge_runtime.clock import Clock
from edge_runtime.config.deployment import Deployment
from edge_runtime.config.gateway import GatewayFile
from edge_runtime.deploy import state as moves
from edge_runtime.deploy.fit import require_room
from edge_runtime.deploy.health import Vitals, Watch
from edge_runtime.deploy.slots import Slots
from edge_runtime.deploy.state import Kept, State, Verdict
from edge_runtime.deploy.trial import named_models, read_offer, step_deadline, try_out
from edge_runtime.errors import DeploymentReason, DeploymentRefused, EdgeRuntimeError, InputError
from edge_runtime.types import DeploymentPhase, DesiredDeployment, ReportedDeployment

if TYPE_CHECKING:
    from edge_runtime.serving import Served

log = logging.getLogger(__name__)

FACTORY, GOOD, CANDIDATE = "factory", "good", "candidate"
LOAD_S = 60.0
TICK_S = 0.5
_VITALS = "vitals.json"
_NOTED_TIMES = 8  # how often in a probation its running time is written down
_NOTED_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Choice:
    """A deployment that may run, and the slot that it is from. `kept`: None for the factory's, whose `digest` is that of its file."""

    slot: str
    kept: Kept | None
    deployment: Deployment
    directory: Path
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Runtime:
    """What an update needs of the gateway.

    `load` never raises for a model that is refused; `enforce` raises InputError and changes nothing, or returns the pipelines that cannot
    run; `factory` raises InputError, `factory_digest` is empty where there is none; `passed` remembers a probe;
    `notice(kind, subject, message)` is the audit; `models()` says what is served.
    """

    load: Callable[[Deployment, Path], Awaitable[Served]]
    enforce: Callable[[Deployment, Path, Served], Awaitable[Mapping[str, str]]]
    factory: Callable[[], tuple[Deployment, Path]]
    factory_digest: Callable[[], str]
    has_model: Callable[[str], bool]
    passed: Callable[[str], None]
    notice: Callable[[str, str, str], None]
    models: Callable[[], dict[str, str]]


class Updates:
    """The deployments of one gateway. `choose`, then `begin`, then `loaded`, then `run` for as long as the gateway."""

    def __init__(self, slots: Slots, config: GatewayFile, store_dir: Path, clock: Clock, watch: Watch, runtime: Runtime) -> None:
        self.running = Choice(FACTORY, None, Deployment(schema=1), slots.root)
        self.slots = slots
        self._config = config
        self._store_dir = store_dir
        self._clock = clock
        self._watch = watch
        self._runtime = runtime
        self.state, damage = slots.read()
        self._disk = self.state
        self._unsaved = False
        self._falling_back = False
        self._told: tuple[int, str, DeploymentReason] | None = None
        self._findings: list[tuple[str, str, str]] = [("deployment_damaged", "slots", damage)] if damage else []
        self._offers: asyncio.Queue[tuple[DesiredDeployment, asyncio.Future[ReportedDeployment]]] = asyncio.Queue()
        self._staging: DesiredDeployment | None = None
        self._before = Vitals()
        self._since_ns: int | None = None
        self._ran_ns = 0
        self._noted_ns = 0
        self._changed: list[asyncio.Future[None]] = []

    # -- start ------------------------------------------------------------------------------------------------------------

    def choose(self) -> Choice:
        """What this start runs: candidate, good or factory, in that order. Reads only. Raises ConfigError when only the factory's is left
        and does not load, with nothing ever pushed."""
        self.state = moves.started(self.state)
        if self.state.starts >= moves.MAX_STARTS:
            self._take_back(DeploymentReason.CRASH_LOOP, f"{self.state.starts} starts without a confirmation")
        self.running = next(self._choices())
        return self.running

    async def begin(self) -> Choice:
        """Counts this start on the disk before anything is loaded. A candidate whose starts cannot be counted is not started."""
        if self.state != self._disk:
            try:
                await self._commit(self.state)
            except OSError as err:
                log.error("deployments cannot be written error=%s", err)
                if self.state.candidate is not None:
                    self._take_back(DeploymentReason.NO_SPACE, f"its starts cannot be counted: {err.strerror}", quarantine=False)
                    self.running = next(self._choices())
                self._unsaved = True
        self._tell_findings()
        log.info("deployment slot=%s revision=%d", self.running.slot, self.running.deployment.revision)
        return self.running

    async def pass_over(self, err: InputError) -> Choice:
        """The next slot, for what `begin` gave does not fit this gateway (any more). Raises `err` when nothing else was ever pushed."""
        log.error("deployment does not fit slot=%s error=%s", self.running.slot, err)
        if self.running.slot == FACTORY:
            if not self.state.high_water:
                raise err
            self.running = self._empty()
            return self.running
        if self.running.slot == CANDIDATE:
            self._take_back(DeploymentReason.INVALID, str(err))
        else:
            self._findings.append(("deployment_damaged", str(self.running.deployment.revision), str(err)))
            self.state = replace(self.state, good=None)
        self.running = next(self._choices())
        await self._commit_or_hold(self.state)
        return await self.begin()

    async def loaded(self, served: Served, refused: Mapping[str, str]) -> None:
        """The models of what `begin` gave are loaded, as far as they are: a candidate of which one is refused is taken back."""
        if self.running.slot != CANDIDATE:
            self._observe(served)
            return
        kept = self.running.kept
        vitals = self.slots.beside(kept, _VITALS) if kept else None
        self._before = _vitals(vitals)
        self._enter_probation(served)
        problems = {**served.refused, **refused}
        if problems:
            await self.revert(DeploymentReason.MODEL_REFUSED, "; ".join(f"{name}: {why}" for name, why in problems.items()))
        else:
            await self.tick()

    # -- offers -----------------------------------------------------------------------------------------------------------

    async def apply(self, desired: DesiredDeployment) -> ReportedDeployment:
        """See `edge_runtime.ports.DeploymentHost`. A caller that goes away stops nothing."""
        answer: asyncio.Future[ReportedDeployment] = asyncio.get_running_loop().create_future()
        self._offers.put_nowait((desired, answer))
        return await answer

    async def run(self) -> None:
        """Takes offers and watches the probation; ends only by cancellation."""
        while True:
            try:
                async with asyncio.timeout(TICK_S if self._since_ns is not None or self._unsaved else None):
                    desired, answer = await self._offers.get()
            except TimeoutError:
                await self.tick()
                continue
            try:
                report = await self._take(desired)
            except DeploymentRefused as err:
                if not answer.done():
                    answer.set_exception(err)
            except Exception as err:  # border of one offer: whatever it does, what runs goes on
                log.exception("deployment failed revision=%d", desired.revision)
                if not answer.done():
                    answer.set_exception(DeploymentRefused(DeploymentReason.INVALID, f"{type(err).__name__}: {err}"))
            else:
                if not answer.done():
                    answer.set_result(report)

    async def _take(self, desired: DesiredDeployment) -> ReportedDeployment:
        try:
            verdict = moves.judge(self.state, desired)
            if verdict is Verdict.RENUMBER:
                await self._commit(moves.renumbered(self.state, desired.revision))
                self.running = Choice(self.running.slot, self.state.running, self.running.deployment, self.running.directory)
            elif verdict is Verdict.TAKE:
                await self._try_and_switch(desired)
        except DeploymentRefused as err:
            await self._refuse(desired, err)
            raise
        except OSError as err:
            full = DeploymentRefused(DeploymentReason.NO_SPACE, f"{self.slots.root} cannot be written: {err.strerror or err}")
            await self._refuse(desired, full)
            raise full from err
        finally:
            self._staging = None
        return self.reported()

    async def _try_and_switch(self, desired: DesiredDeployment) -> None:
        self._staging = desired
        self._signal()
        deployment = await asyncio.to_thread(read_offer, desired)
        moves.refuse_quarantined(self.state, desired.digest, moves.content_digest(deployment))
        require_room(self.slots.root, 2 * len(desired.document))
        tried = await try_out(desired, deployment, self._config, self._store_dir, self._runtime.has_model)
        for key in tried.keys:
            self._runtime.passed(key)
        before = self._before if self.state.candidate else self._watch.vitals()
        kept = await asyncio.to_thread(self.slots.stage, desired, {_VITALS: msgspec.json.encode(before)})
        self._tell("deployment_staged", str(desired.revision), desired.digest)
        async with step_deadline("loading its models", LOAD_S):
            served = await self._runtime.load(deployment, self.slots.folder(kept))
        try:
            served.require_all()
            superseded = self.state.candidate
            await self._commit(moves.switched(self.state, kept))
        except (OSError, DeploymentRefused):
            served.close()
            raise
        if superseded is not None:
            message = f"{DeploymentReason.SUPERSEDED.value}: revision {desired.revision} came before it was confirmed"
            self._tell("deployment_reverted", str(superseded.revision), message)
        await self._enforce_candidate(Choice(CANDIDATE, kept, deployment, self.slots.folder(kept)), served, before)

    async def _enforce_candidate(self, choice: Choice, served: Served, before: Vitals) -> None:
        self.running, self._before = choice, before
        try:
            refused = await self._runtime.enforce(choice.deployment, choice.directory, served)
        except InputError as err:
            served.close()
            await self.revert(DeploymentReason.INVALID, str(err))
            return
        self._enter_probation(served)
        if refused:
            await self.revert(DeploymentReason.MODEL_REFUSED, "; ".join(f"pipelines.{name}: {why}" for name, why in refused.items()))
            return
        await asyncio.to_thread(self.slots.sweep, self.state)
        await self.tick()

    async def _refuse(self, desired: DesiredDeployment, err: DeploymentRefused) -> None:
        self._staging = None
        log.error("deployment refused revision=%d reason=%s", desired.revision, err)
        after = moves.refused(self.state, desired, err.reason, str(err).partition(": ")[2])
        if after != self.state:
            await self._commit_or_hold(after)
        if self._told != (told := (desired.revision, desired.digest, err.reason)):
            self._told = told
            self._tell("deployment_refused", str(desired.revision), str(err))
        await asyncio.to_thread(self.slots.sweep, self.state)

    # -- probation --------------------------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Judges the candidate, or confirms it; tries again to write what could not be written."""
        if self._unsaved:
            await self._commit_or_hold(self.state)
        if self._since_ns is None:
            return
        spec = self.running.deployment.health
        ran_ns = self._ran()
        last = ran_ns >= spec.probation_s * 1e9
        fault = self._watch.fault(spec, self._before, last=last)
        if fault:
            await self.revert(DeploymentReason.UNHEALTHY, fault)
        elif last:
            await self._confirm()
        elif ran_ns - self._noted_ns >= max(_NOTED_EVERY_S, spec.probation_s / _NOTED_TIMES) * 1e9:
            self._noted_ns = ran_ns
            await self._commit_or_hold(replace(self.state, probation_ns=ran_ns), both=False)

    async def revert(self, reason: DeploymentReason, message: str) -> None:
        """The candidate goes, for good; what was good before it serves again, else the factory's, else nothing."""
        self._take_back(reason, message)
        self._since_ns, self._falling_back = None, True
        try:
            await self._commit_or_hold(self.state)
            await self._fall_back()
        finally:
            self._falling_back = False
        self._tell_findings()
        self._signal()
        await asyncio.to_thread(self.slots.sweep, self.state)

    async def _fall_back(self) -> None:
        saved = self.state
        for choice in self._choices():
            self.running = choice
            try:
                async with step_deadline("loading the models before", LOAD_S):
                    served = await self._runtime.load(choice.deployment, choice.directory)
                await self._runtime.enforce(choice.deployment, choice.directory, served)
            except InputError as err:
                log.error("deployment does not fit slot=%s error=%s", choice.slot, err)
                continue
            self._observe(served)
            break
        if self.state != saved:
            await self._commit_or_hold(self.state)

    def reloaded(self, deployment: Deployment, directory: Path, served: Served) -> None:
        """The factory deployment was read again and is in force."""
        self.running = Choice(FACTORY, None, deployment, directory, self._runtime.factory_digest())
        self._observe(served)
        self._signal()

    async def stop(self) -> None:
        """A graceful stop is no crash: it does not count as a start, and the probation's time goes on at the next."""
        if self.state.candidate is not None:
            await self._commit_or_hold(moves.stopped(self.state, self._ran()))

    async def _confirm(self) -> None:
        revision = self.running.deployment.revision
        self._since_ns = None
        await self._commit_or_hold(moves.confirmed(self.state))
        self.running = Choice(GOOD, self.state.good, self.running.deployment, self.running.directory)
        self._tell("deployment_confirmed", str(revision), self.state.good.digest if self.state.good else "")
        for figures in self._watch.canaries():
            self._tell("canary_result", figures.pipeline, str(figures))
        await asyncio.to_thread(self.slots.sweep, self.state)

    def _enter_probation(self, served: Served) -> None:
        self._since_ns = self._clock.monotonic_ns()
        self._ran_ns = self._noted_ns = self.state.probation_ns
        self._observe(served)

    def _observe(self, served: Served) -> None:
        digests = {name: handle.digest for name, handle in served.handles.items()}
        self._watch.begin(self.running.deployment, digests, served.labels)

    def _ran(self) -> int:
        return self._ran_ns + (self._clock.monotonic_ns() - self._since_ns if self._since_ns is not None else 0)

    # -- what stands ------------------------------------------------------------------------------------------------------

    def reported(self) -> ReportedDeployment:
        """See `edge_runtime.ports.DeploymentHost`."""
        state = self.state if self._unsaved else self.slots.read()[0]
        kept, last = self.running.kept, state.offered
        revision = kept.revision if kept else self.running.deployment.revision
        digest = self.slots.digest(kept) if kept else self.running.digest
        report = ReportedDeployment(
            running_revision=revision,
            running_digest=digest,
            slot=self.running.slot,
            revision=max(revision, state.high_water),
            digest=digest,
            phase=DeploymentPhase.FACTORY,
            models=self._runtime.models(),
            quarantined=tuple(bad.digest for bad in state.quarantine),
        )
        if self._staging is not None:
            return replace(report, revision=self._staging.revision, digest=self._staging.digest, phase=DeploymentPhase.STAGING)
        if last is None:
            return report
        if self._falling_back:  # decided and on the disk; told once the one before serves again
            return replace(report, revision=last.revision, digest=last.digest, phase=DeploymentPhase.PROBATION)
        return replace(report, revision=last.revision, digest=last.digest, phase=last.phase, reason=last.reason, message=last.message)

    def held_models(self) -> set[str]:
        """Digests that any slot names, the factory's too."""
        held: set[str] = set()
        for kept in (self.state.good, self.state.candidate):
            if kept is not None:
                try:
                    held |= named_models(self.slots.load(kept))
                except DeploymentRefused:
                    continue
        return held | named_models(self.running.deployment)

    async def changed(self) -> None:
        """Returns after the next change of `reported`."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed.append(waiter)
        await waiter

    def probation(self) -> dict[str, float]:
        """Running time and starts of the candidate, or nothing."""
        if self._since_ns is None:
            return {}
        return {"ran_s": self._ran() / 1e9, "of_s": self.running.deployment.health.probation_s, "starts": self.state.starts}

    def _choices(self) -> Iterator[Choice]:
        """Slots that load, best first; one that does not is struck from the state and found. At last an empty deployment."""
        if self.state.candidate is not None:
            try:
                yield self._slot(CANDIDATE, self.state.candidate)
            except DeploymentRefused as err:
                self._take_back(err.reason, str(err), quarantine=False)
        if self.state.good is not None:
            try:
                yield self._slot(GOOD, self.state.good)
            except DeploymentRefused as err:
                self._findings.append(("deployment_damaged", str(self.state.good.revision), str(err)))
                log.error("deployment damaged revision=%d error=%s", self.state.good.revision, err)
                self.state = replace(self.state, good=None)
        try:
            yield Choice(FACTORY, None, *self._runtime.factory(), self._runtime.factory_digest())
        except EdgeRuntimeError as err:
            if not self.state.high_water:
                raise
            self._findings.append(("deployment_damaged", FACTORY, str(err)))
            log.error("factory deployment does not load error=%s", err)
        yield self._empty()

    def _slot(self, slot: str, kept: Kept) -> Choice:
        return Choice(slot, kept, self.slots.load(kept), self.slots.folder(kept))

    def _empty(self) -> Choice:
        return Choice(FACTORY, None, Deployment(schema=1), self.slots.root)

    def _take_back(self, reason: DeploymentReason, message: str, *, quarantine: bool = True) -> None:
        bad = self.state.candidate
        assert bad is not None
        log.error("deployment reverted revision=%d reason=%s message=%s", bad.revision, reason.value, message)
        content = ""
        if quarantine:
            try:
                content = moves.content_digest(self.slots.load(bad))
            except DeploymentRefused:
                content = ""
        self.state = moves.reverted(self.state, reason, message, content=content, quarantine=quarantine)
        self._findings.append(("deployment_reverted", str(bad.revision), f"{reason.value}: {message}"))

    async def _commit(self, state: State, *, both: bool = True) -> None:
        """Raises OSError, with the state before still in force."""
        await asyncio.to_thread(self.slots.save, state, both=both)
        self.state, self._unsaved = state, False
        self._signal()

    async def _commit_or_hold(self, state: State, *, both: bool = True) -> None:
        """What must be so even when the disk does not take it: kept in memory and tried again."""
        try:
            await self._commit(state, both=both)
        except OSError as err:
            if not self._unsaved:
                log.error("deployments cannot be written; trying again error=%s", err)
            self.state, self._unsaved = state, True
            self._signal()

    def _tell_findings(self) -> None:
        findings, self._findings = self._findings, []
        for finding in findings:
            self._tell(*finding)

    def _tell(self, kind: str, subject: str, message: str) -> None:
        log.info("notice=%s subject=%s %s", kind, subject, message)
        self._runtime.notice(kind, subject, message)

    def _signal(self) -> None:
        waiters, self._changed = self._changed, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


def _vitals(data: bytes | None) -> Vitals:
    try:
        return msgspec.json.decode(data or b"{}", type=Vitals)
    except (msgspec.MsgspecError, RecursionError):
        return Vitals()
