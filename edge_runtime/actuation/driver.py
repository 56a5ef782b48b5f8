"""Brings actuators to the state that the arbiter decides: from decisions on the bus to calls of adapters. Decides nothing itself.

A decision reaches its adapter in the next turn of the event loop, without a queue; no network, disk or store stands between.
Commands to one actuator run one after another and the newest wins. Every outcome is published as an `Action` with its cause.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from edge_runtime.actuation.arbiter import Arbiter, Command, Request, request_holder
from edge_runtime.bus import Bus
from edge_runtime.clock import Clock
from edge_runtime.config.deployment import ActuatorSpec, RuleSpec
from edge_runtime.config.verbs import actions
from edge_runtime.errors import AdapterDisconnected, CommandRefused, InputError
from edge_runtime.ports import Actuators
from edge_runtime.types import Action, ActionOutcome, Decision, DecisionKind

log = logging.getLogger(__name__)

COMMAND_TIMEOUT_S = 2.0
STOP_TIMEOUT_S = 1.0
UNKNOWN_STATE = "unknown"
_QUICK_RETRIES_S = (0.05, 0.1, 0.2, 0.4, 0.8)
_SLOW_RETRY_S = 5.0
_SLOWEST_RETRY_S = 300.0
_INTERRUPT_S = 0.2

STOPPING = "stop"
ADAPTER_OPENED = "adapter opened"


@dataclass(frozen=True, slots=True)
class Output:
    """A physical channel. `states` maps logical states to what the driver wants; others are passed as they are.

    `source` is the adapter's name, for `Actuation.refresh`.
    """

    adapter: Actuators
    channel: str
    states: Mapping[str, str] = field(default_factory=dict)
    source: str = ""


@dataclass(slots=True)
class _Line:
    """One actuator: the command that waits, the task that works, and what is known of the hardware."""

    output: Output | None
    newer: asyncio.Event = field(default_factory=asyncio.Event)
    queued: Command | None = None
    task: asyncio.Task[None] | None = None
    confirmed: str = UNKNOWN_STATE
    retry: Command | None = None
    retry_ns: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class _Claiming:
    """What a rule claims when it fires."""

    actions: tuple[tuple[str, str], ...]
    priority: int


class Actuation:
    """Owns all outputs. `run` is its one task; everything else is called on the event loop and returns at once.

    `boot` makes action ids unique: `<boot>-a<n>`. `on_stop` says what happens when `run` is cancelled without `stop`.
    """

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        arbiter: Arbiter,
        outputs: Mapping[str, Output],
        *,
        rules: Sequence[RuleSpec] = (),
        boot: str = "",
        on_stop: Literal["safe", "hold"] = "safe",
        timeout_s: float = COMMAND_TIMEOUT_S,
        retry_delays_s: Sequence[float] = _QUICK_RETRIES_S,
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._arbiter = arbiter
        self._boot = boot
        self._on_stop = on_stop
        self._timeout_s = timeout_s
        self._retry_delays_s = tuple(retry_delays_s)
        self._lines = {name: _Line(outputs.get(name)) for name in arbiter.states()}
        self._claiming: dict[str, _Claiming] = {}
        self._group: asyncio.TaskGroup | None = None
        self._wake = asyncio.Event()
        self._stopped = False
        self._count = 0
        self._set_rules(rules)
        bus.subscribe(Decision, self._on_decision)

    async def run(self) -> None:
        """Drives every actuator to its state, then follows decisions and leases until cancelled; then as `stop` does."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._dispatch(self._arbiter.start(self._clock.monotonic_ns()))
                while True:
                    await self._sleep()
                    self.tick()
        finally:
            self._group = None
            if not self._stopped:
                await self.stop(safe=self._on_stop == "safe")

    def tick(self) -> None:
        """Lets leases run out that are over and repeats failed commands that are due. `run` calls it by itself."""
        now_ns = self._clock.monotonic_ns()
        self._dispatch(self._arbiter.expire(now_ns))
        for line in self._lines.values():
            if line.retry is not None and now_ns >= line.retry_ns and line.task is None:
                self._dispatch_to(line, line.retry)

    async def stop(self, *, safe: bool = True) -> None:
        """Ends all work within 1 s, the actuators in their safe states or (`safe` False) as they are. Nothing acts afterwards."""
        self._stopped = True
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S + 2 * _INTERRUPT_S):
                await self._interrupt()
                if safe:
                    await self._make_safe()
        except TimeoutError:
            log.error("actuators did not stop in time seconds=%g", STOP_TIMEOUT_S)

    def configure(self, rules: Sequence[RuleSpec], actuators: Mapping[str, ActuatorSpec], outputs: Mapping[str, Output]) -> None:
        """Replaces rules, actuators and outputs; what stays the same goes on. Call `restore` next with the rules that hold.

        Raises InputError for a `then` that cannot be read, and changes nothing.
        """
        self._set_rules(rules)
        now_ns = self._clock.monotonic_ns()
        commands = self._arbiter.configure(actuators, now_ns)
        old = self._lines
        self._lines = {name: old.get(name) or _Line(None) for name in actuators}
        for command in commands:
            if command.actuator not in actuators:
                self._dispatch_to(old[command.actuator], command)
        for name, line in self._lines.items():
            output = outputs.get(name)
            if output != line.output:
                line.output, line.confirmed = output, UNKNOWN_STATE
                commands.append(self._arbiter.repeat(name, now_ns, "output changed"))
        self._dispatch({command.actuator: command for command in commands if command.actuator in actuators}.values())

    def restore(self, held: Iterable[Decision]) -> None:
        """Claims again for rules that hold already, each for one lease, as after a restart; claims that stand are left alone."""
        now_ns = self._clock.monotonic_ns()
        for decision in held:
            claiming = self._claiming.get(decision.rule)
            if claiming is not None:
                standing = self._arbiter.claims(decision.rule)
                self._claim(decision, [action for action in claiming.actions if action[0] not in standing], claiming.priority, now_ns)

    def renew(self, rules: Iterable[str]) -> None:
        """Prolongs the leases of rules that are known to hold (`RuleEngine.sustained`). Cheap: call it at every tick."""
        now_ns = self._clock.monotonic_ns()
        for rule in rules:
            if commands := self._arbiter.renew(rule, now_ns):
                self._dispatch(commands)

    def command(self, request: Request) -> None:
        """Takes a command from outside. Raises CommandRefused, and records the refusal."""
        try:
            commands = self._arbiter.request(request, self._clock.now())
        except CommandRefused as err:
            self._publish(request.actuator, request.state, ActionOutcome.REFUSED, request_holder(request.id), detail=str(err))
            raise
        self._dispatch(commands)

    def refresh(self, source: str | None = None) -> None:
        """Brings the actuators of an adapter (None: of all) once more to their states, such as when it has been opened again."""
        now_ns = self._clock.monotonic_ns()
        for name, line in self._lines.items():
            if line.output is not None and (source is None or line.output.source in ("", source)):
                self._dispatch([self._arbiter.repeat(name, now_ns, ADAPTER_OPENED)])

    def states(self) -> dict[str, str]:
        """The state that the hardware last took, by actuator; `unknown` until it took one."""
        return {name: line.confirmed for name, line in self._lines.items()}

    def wanted(self) -> dict[str, str]:
        """The state that every actuator shall have."""
        return self._arbiter.states()

    @property
    def busy(self) -> bool:
        """Whether a command is on its way to an actuator."""
        return any(line.task is not None for line in self._lines.values())

    def next_deadline_ns(self) -> int | None:
        """When `tick` may have something to do."""
        due = [line.retry_ns for line in self._lines.values() if line.retry is not None]
        lease_ns = self._arbiter.next_deadline_ns()
        return min(due if lease_ns is None else [*due, lease_ns], default=None)

    # -- claims -----------------------------------------------------------------------------------------------------------

    def _set_rules(self, rules: Sequence[RuleSpec]) -> None:
        claiming = {rule.rule: _Claiming(tuple(actions(rule.then)), rule.priority) for rule in rules if rule.then}
        now_ns = self._clock.monotonic_ns()
        for rule, old in self._claiming.items():
            if claiming.get(rule) != old:
                self._dispatch(self._arbiter.release(rule, now_ns, cause=f"rule changed or removed: {rule}"))
        self._claiming = claiming

    def _on_decision(self, decision: Decision) -> None:
        claiming = self._claiming.get(decision.rule)
        now_ns = self._clock.monotonic_ns()
        if decision.kind is DecisionKind.RELEASED:
            cause = f"released: {decision.rule}"
            self._dispatch(self._arbiter.release(decision.rule, now_ns, cause=cause, decision=decision.id))
        elif claiming is not None:
            self._claim(decision, claiming.actions, claiming.priority, now_ns)

    def _claim(self, decision: Decision, wanted: Iterable[tuple[str, str]], priority: int, now_ns: int) -> None:
        for actuator, state in wanted:
            try:
                commands = self._arbiter.claim(decision.rule, actuator, state, now_ns, priority=priority, decision=decision.id)
            except CommandRefused as err:
                self._publish(actuator, state, ActionOutcome.REFUSED, decision.rule, decision.id, priority, detail=str(err))
            else:
                self._dispatch(commands)

    # -- commands ---------------------------------------------------------------------------------------------------------

    def _dispatch(self, commands: Iterable[Command]) -> None:
        for command in commands:
            line = self._lines.get(command.actuator)
            if line is not None:
                self._dispatch_to(line, command)
        self._wake.set()

    def _dispatch_to(self, line: _Line, command: Command) -> None:
        """Before `run` there is nothing to do: it starts with every actuator's state at that time."""
        if self._group is None or self._stopped:
            return
        if line.output is None:
            self._report(command, ActionOutcome.REFUSED, "no output is bound to it in the gateway file")
            return
        replaced, line.queued, line.retry = line.queued, command, None
        line.newer.set()
        if line.task is None:
            line.task = self._group.create_task(self._work(line), name=f"actuator:{command.actuator}")
        if replaced is not None:
            self._report(replaced, ActionOutcome.REFUSED, f"superseded by `{command.state}` ({command.cause})")

    async def _work(self, line: _Line) -> None:
        try:
            while (command := line.queued) is not None:
                line.queued = None
                line.newer.clear()
                await self._execute(line, command, self._timeout_s)
        finally:
            line.task = None

    async def _execute(self, line: _Line, command: Command, timeout_s: float) -> None:
        """One command to its outcome; a device that is away is tried again until a newer command comes."""
        for delay_s in (*self._retry_delays_s, None):
            try:
                await _actuate(line.output, command.state, timeout_s)
            except AdapterDisconnected as err:
                line.confirmed = UNKNOWN_STATE
                if delay_s is not None and not await _is_set_within(line.newer, delay_s):
                    continue
                if line.queued is not None:
                    self._report(command, ActionOutcome.REFUSED, f"superseded by `{line.queued.state}` while its device was away")
                else:
                    self._fail(line, command, ActionOutcome.FAILED, str(err) or "the device is away", again=True)
            except TimeoutError as err:
                detail = str(err) or f"no answer within {timeout_s:g} s"
                self._fail(line, command, ActionOutcome.TIMED_OUT, detail, again=True)
            except asyncio.CancelledError:
                self._fail(line, command, ActionOutcome.FAILED, "interrupted: the gateway stops", again=False)
                raise
            except Exception as err:  # noqa: BLE001 - border to foreign drivers: one that fails must not stop the other actuators
                self._fail(line, command, ActionOutcome.FAILED, str(err) or type(err).__name__, again=False)
            else:
                self._succeed(line, command)
            return

    def _succeed(self, line: _Line, command: Command) -> None:
        if line.failures:
            log.info("actuator answers again actuator=%s attempts=%d", command.actuator, line.failures)
        line.failures = 0
        line.confirmed = command.state
        self._report(command, ActionOutcome.DONE)

    def _fail(self, line: _Line, command: Command, outcome: ActionOutcome, detail: str, *, again: bool) -> None:
        """After a failure nobody knows the state. What may pass is tried again, ever more slowly, unless newer work waits."""
        if not line.failures:
            log.warning("actuator failed actuator=%s state=%s outcome=%s error=%s", command.actuator, command.state, outcome.value, detail)
        line.failures += 1
        line.confirmed = UNKNOWN_STATE
        if again and line.queued is None and not self._stopped:
            delay_s = min(_SLOWEST_RETRY_S, _SLOW_RETRY_S * 2.0 ** min(line.failures - 1, 10))
            line.retry, line.retry_ns = command, self._clock.monotonic_ns() + round(delay_s * 1e9)
            self._wake.set()
        self._report(command, outcome, detail)

    def _report(self, command: Command, outcome: ActionOutcome, detail: str = "") -> None:
        self._publish(
            command.actuator, command.state, outcome, command.cause, command.decision, command.priority, command.lease_s, detail=detail
        )

    def _publish(
        self,
        actuator: str,
        state: str,
        outcome: ActionOutcome,
        cause: str,
        decision: str = "",
        priority: int = 0,
        lease_s: float = 0.0,
        *,
        detail: str = "",
    ) -> None:
        self._count += 1
        identity = f"{self._boot}-a{self._count}"
        self._bus.publish(Action(identity, actuator, state, self._clock.now(), outcome, cause, decision, priority, lease_s, detail))

    # -- time and stop ----------------------------------------------------------------------------------------------------

    async def _sleep(self) -> None:
        """Until the next deadline, or until something changed it."""
        self._wake.clear()
        due_ns = self.next_deadline_ns()
        if due_ns is None:
            await self._wake.wait()
        else:
            await _is_set_within(self._wake, max(0.0, (due_ns - self._clock.monotonic_ns()) * 1e-9))

    async def _interrupt(self) -> None:
        tasks = [line.task for line in self._lines.values() if line.task is not None]
        for line in self._lines.values():
            if line.queued is not None:
                self._report(line.queued, ActionOutcome.REFUSED, "the gateway stops")
                line.queued = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_INTERRUPT_S)

    async def _make_safe(self) -> None:
        safe = self._arbiter.safe_states()
        commands = [(line, Command(name, safe[name], STOPPING, "", 0, 0.0, 0)) for name, line in self._lines.items() if line.output]
        async with asyncio.TaskGroup() as group:
            for line, command in commands:
                group.create_task(self._make_one_safe(line, command), name=f"actuator:{command.actuator}:stop")

    async def _make_one_safe(self, line: _Line, command: Command) -> None:
        line.newer.clear()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S - _INTERRUPT_S):
                await self._execute(line, command, min(self._timeout_s, STOP_TIMEOUT_S - 2 * _INTERRUPT_S))
        except TimeoutError:
            pass  # reported by _execute


async def _actuate(output: Output | None, state: str, timeout_s: float) -> None:
    if output is None:
        raise InputError("its output was taken away by a change of the gateway file")
    async with asyncio.timeout(timeout_s):
        await output.adapter.actuate(output.channel, output.states.get(state, state))


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
