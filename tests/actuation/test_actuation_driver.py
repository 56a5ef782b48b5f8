"""The driver: from decisions to adapters, with every outcome recorded, whatever the hardware does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from edge_runtime.actuation.arbiter import Arbiter, Request
from edge_runtime.actuation.driver import UNKNOWN_STATE, Actuation, Output
from edge_runtime.bus import Bus
from edge_runtime.clock import VirtualClock
from edge_runtime.config.deployment import ActuatorSpec, RuleSpec
from edge_runtime.errors import AdapterDisconnected, AdapterError, CommandRefused, InputError
from edge_runtime.types import Action, ActionOutcome, Decision, DecisionKind

DONE, REFUSED, FAILED, TIMED_OUT = ActionOutcome.DONE, ActionOutcome.REFUSED, ActionOutcome.FAILED, ActionOutcome.TIMED_OUT
VALVE = ActuatorSpec(safe_state="closed", lease_s=30, states=("open", "closed", "half"))
RULES = (
    RuleSpec(rule="supply", when="true", then={"open": "valve"}, priority=20),
    RuleSpec(rule="fault", when="true", then={"close": "valve"}, priority=90),
    RuleSpec(rule="trickle", when="true", then={"set": "valve=half"}, priority=50),
    RuleSpec(rule="note", when="true"),
)


class Panel:
    """Hardware with a switch for every way to fail."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.failure: Exception | None = None
        self.hanging: asyncio.Event | None = None

    async def actuate(self, channel: str, state: str) -> None:
        self.calls.append((channel, state))
        if self.hanging is not None:
            await self.hanging.wait()
        if self.failure is not None:
            raise self.failure

    async def actuator_state(self, channel: str) -> str | None:
        return None


class Bench:
    """An actuation on a virtual clock, with everything that it recorded."""

    def __init__(
        self, actuators: dict[str, ActuatorSpec] | None = None, *, timeout_s: float = 2.0, bound: bool = True, on_stop: str = "safe"
    ) -> None:
        self.bus = Bus()
        self.clock = VirtualClock()
        self.panel = Panel()
        self.actions: list[Action] = []
        self.bus.subscribe(Action, self.actions.append)
        specs = actuators or {"valve": VALVE}
        self.outputs = {name: Output(self.panel, f"panel/{name}", {"open": "1"}, "panel") for name in specs} if bound else {}
        self.actuation = Actuation(
            self.bus,
            self.clock,
            Arbiter(specs),
            self.outputs,
            rules=RULES,
            boot="boot",
            on_stop="hold" if on_stop == "hold" else "safe",
            timeout_s=timeout_s,
            retry_delays_s=(0.001, 0.001),
        )
        self.task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.task = asyncio.create_task(self.actuation.run(), name="actuation")
        try:
            await self.until(lambda: self.actuation._group is not None)
            yield
        finally:
            await self.end()

    async def end(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0)

    async def settled(self, count: int) -> list[tuple[str, ActionOutcome]]:
        """The first `count` outcomes, once they are there."""
        await self.until(lambda: len(self.actions) >= count)
        return self.outcomes

    @property
    def outcomes(self) -> list[tuple[str, ActionOutcome]]:
        return [(action.state, action.outcome) for action in self.actions]

    def fire(self, rule: str, identity: str = "boot-1") -> None:
        self.bus.publish(Decision(identity, DecisionKind.FIRED, rule, self.clock.now(), "1"))

    def release(self, rule: str, identity: str = "boot-2") -> None:
        self.bus.publish(Decision(identity, DecisionKind.RELEASED, rule, self.clock.now(), "1", reason="until"))

    def later(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.actuation.tick()


async def test_every_actuator_starts_safe() -> None:
    bench = Bench()
    async with bench.running():
        assert await bench.settled(1) == [("closed", DONE)]
        assert (bench.actions[0].cause, bench.actions[0].id) == ("start", "boot-a1")
        assert bench.panel.calls == [("panel/valve", "closed")]
        assert bench.actuation.states() == {"valve": "closed"}


async def test_a_decision_is_carried_out_and_recorded_with_its_cause() -> None:
    bench = Bench()
    async with bench.running():
        await bench.settled(1)
        bench.fire("supply", "boot-17")
        assert await bench.settled(2) == [("closed", DONE), ("open", DONE)]
        action = bench.actions[1]
        assert (action.cause, action.decision, action.priority, action.lease_s) == ("supply", "boot-17", 20, 30.0)
        assert bench.panel.calls[-1] == ("panel/valve", "1")
        bench.release("supply", "boot-18")
        await bench.settled(3)
        assert (bench.actions[2].state, bench.actions[2].cause, bench.actions[2].decision) == ("closed", "released: supply", "boot-18")


async def test_the_adapter_is_called_in_the_next_turn_of_the_loop() -> None:
    bench = Bench()
    async with bench.running():
        await bench.settled(1)
        bench.fire("supply")
        await asyncio.sleep(0)
        assert bench.panel.calls[-1] == ("panel/valve", "1")


async def test_the_higher_priority_wins_and_a_rule_without_actions_does_nothing() -> None:
    bench = Bench()
    async with bench.running():
        await bench.settled(1)
        bench.fire("note")
        bench.fire("supply")
        await bench.settled(2)
        bench.fire("fault")
        await bench.settled(3)
        bench.fire("trickle")
        bench.release("fault")
        assert await bench.settled(4) == [("closed", DONE), ("open", DONE), ("closed", DONE), ("half", DONE)]


async def test_a_lease_that_is_not_renewed_ends_safe_and_one_that_is_goes_on() -> None:
    bench = Bench()
    async with bench.running():
        await bench.settled(1)
        bench.fire("supply", "boot-17")
        await bench.settled(2)
        bench.later(29)
        bench.actuation.renew(["supply", "note"])
        bench.later(29)
        assert bench.actuation.wanted() == {"valve": "open"}
        bench.later(1)
        await bench.settled(3)
        assert (bench.actions[2].state, bench.actions[2].cause, bench.actions[2].decision) == ("closed", "lease expired: supply", "boot-17")
        bench.actuation.renew(["supply"])
        assert (await bench.settled(4))[3] == ("open", DONE)


async def test_a_lease_ends_by_itself_in_time() -> None:
    bench = Bench({"valve": ActuatorSpec(safe_state="closed", lease_s=0.05)})
    async with bench.running():
        await bench.settled(1)
        bench.fire("supply")
        await bench.settled(2)
        bench.clock.advance(0.05)
        assert (await bench.settled(3))[2] == ("closed", DONE)


async def test_a_restored_rule_holds_its_actuator_from_the_start_for_one_lease() -> None:
    bench = Bench()
    held = Decision("old-3", DecisionKind.FIRED, "supply", bench.clock.now(), "1")
    bench.actuation.restore([held])
    bench.actuation.restore([held])
    async with bench.running():
        assert await bench.settled(1) == [("open", DONE)]
        assert bench.actions[0].decision == "old-3"
        bench.later(30)
        assert (await bench.settled(2))[1] == ("closed", DONE)


# -- hardware that fails ------------------------------------------------------------------------------------------------------


async def test_commands_run_one_after_another_and_the_newest_wins() -> None:
    bench = Bench()
    async with bench.running():
        await bench.settled(1)
        bench.panel.hanging = asyncio.Event()
        bench.fire("supply")
        await bench.until(lambda: len(bench.panel.calls) == 2)
        bench.fire("trickle")
        bench.fire("fault")
        assert await bench.settled(2) == [("closed", DONE), ("half", REFUSED)]
        assert bench.actions[1].detail == "superseded by `closed` (fault)"
        bench.panel.hanging.set()
        assert (await bench.settled(4))[2:] == [("open", DONE), ("closed", DONE)]
        assert [state for _, state in bench.panel.calls] == ["closed", "1", "closed"]


async def test_a_device_that_does_not_answer_times_out_and_is_tried_again_later() -> None:
    bench = Bench(timeout_s=0.01)
    async with bench.running():
        await bench.settled(1)
        bench.panel.hanging = asyncio.Event()
        bench.fire("supply", "boot-9")
        assert (await bench.settled(2))[1] == ("open", TIMED_OUT)
        assert "no answer within 0.01 s" in bench.actions[1].detail
        assert bench.actuation.states() == {"valve": UNKNOWN_STATE}
        bench.panel.hanging.set()
        bench.later(4.9)
        assert len(bench.actions) == 2
        bench.later(0.1)
        assert (await bench.settled(3))[2] == ("open", DONE)
        assert bench.actions[2].decision == "boot-9"


async def test_a_device_that_is_away_is_tried_again_at_once_and_recorded_once() -> None:
    bench = Bench()
    async with bench.running():
        await bench.settled(1)
        bench.panel.failure = AdapterDisconnected("cable pulled")
        bench.fire("supply")
        assert (await bench.settled(2))[1] == ("open", FAILED)
        assert bench.actions[1].detail == "cable pulled"
        assert len(bench.panel.calls) == 4
        bench.panel.failure = None
        bench.actuation.refresh("another")
        assert len(bench.actions) == 2
        bench.actuation.refresh("panel")
        assert (await bench.settled(3))[2] == ("open", DONE)


async def test_a_newer_command_ends_the_retries_of_an_older_one() -> None:
    bench = Bench()
    bench.actuation._retry_delays_s = (60.0,)
    async with bench.running():
        await bench.settled(1)
        bench.panel.failure = AdapterDisconnected("cable pulled")
        bench.fire("supply")
        await bench.until(lambda: len(bench.panel.calls) == 2)
        bench.panel.failure = None
        bench.fire("fault")
        assert (await bench.settled(3))[1:] == [("open", REFUSED), ("closed", DONE)]
        assert "superseded by `closed`" in bench.actions[1].detail


@pytest.mark.parametrize("failure", [AdapterError("stuck"), RuntimeError("bug in a driver")])
async def test_a_device_that_refuses_is_recorded_and_the_others_go_on(failure: Exception) -> None:
    bench = Bench({"valve": VALVE, "pump": ActuatorSpec(safe_state="stopped")})
    async with bench.running():
        await bench.settled(2)
        bench.panel.failure = failure
        bench.fire("supply")
        assert (await bench.settled(3))[2] == ("open", FAILED)
        assert bench.actions[2].detail == str(failure)
        bench.panel.failure = None
        bench.release("supply")
        assert (await bench.settled(4))[3] == ("closed", DONE)
        bench.later(1000)
        assert len(bench.actions) == 4


async def test_an_actuator_without_hardware_says_so() -> None:
    bench = Bench(bound=False)
    async with bench.running():
        assert await bench.settled(1) == [("closed", REFUSED)]
        assert "no output is bound" in bench.actions[0].detail


async def test_a_subscriber_that_fails_does_not_stop_an_actuator() -> None:
    bench = Bench()

    def full_disk(action: Action) -> None:
        raise OSError("no space left on device")

    bench.bus.subscribe(Action, full_disk)
    async with bench.running():
        bench.fire("supply")
        await bench.until(lambda: bench.panel.calls[-1:] == [("panel/valve", "1")])


# -- commands from outside ----------------------------------------------------------------------------------------------------


async def test_a_command_from_outside_acts_or_is_refused_and_both_are_recorded() -> None:
    bench = Bench()
    async with bench.running():
        await bench.settled(1)
        soon = bench.clock.monotonic_ns() + 10**9
        bench.actuation.command(Request("c1", "valve", "open", expires_mono_ns=soon))
        assert (await bench.settled(2))[1] == ("open", DONE)
        with pytest.raises(CommandRefused, match="duplicate"):
            bench.actuation.command(Request("c1", "valve", "open", expires_mono_ns=soon))
        refused = bench.actions[2]
        assert (refused.outcome, refused.cause, refused.actuator) == (REFUSED, "command:c1", "valve")
        assert "duplicate" in refused.detail


# -- stop ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("explicitly", [True, False])
async def test_at_a_stop_actuators_become_safe(explicitly: bool) -> None:
    bench = Bench()
    async with bench.running():
        await bench.settled(1)
        bench.fire("supply")
        await bench.settled(2)
        if explicitly:
            await bench.actuation.stop(safe=True)
            bench.fire("trickle")
    assert bench.outcomes == [("closed", DONE), ("open", DONE), ("closed", DONE)]
    assert bench.actions[2].cause == "stop"


@pytest.mark.parametrize("explicitly", [True, False])
async def test_at_a_stop_actuators_hold_where_that_is_asked_for(explicitly: bool) -> None:
    bench = Bench(on_stop="hold")
    async with bench.running():
        await bench.settled(1)
        bench.fire("supply")
        await bench.settled(2)
        if explicitly:
            await bench.actuation.stop(safe=False)
    assert bench.outcomes == [("closed", DONE), ("open", DONE)]


async def test_a_stop_does_not_wait_for_a_device_that_hangs() -> None:
    bench = Bench({"valve": VALVE, "pump": ActuatorSpec(safe_state="stopped")})
    async with bench.running():
        await bench.settled(2)
        bench.panel.hanging = asyncio.Event()
        bench.fire("supply")
        await bench.until(lambda: len(bench.panel.calls) == 3)
        async with asyncio.timeout(10):
            await bench.actuation.stop(safe=True)
    assert bench.outcomes[2:] == [("open", FAILED), ("closed", TIMED_OUT), ("stopped", TIMED_OUT)]


# -- change of the deployment -------------------------------------------------------------------------------------------------


async def test_what_stays_the_same_goes_on_through_a_change() -> None:
    bench = Bench()
    async with bench.running():
        await bench.settled(1)
        bench.fire("supply")
        await bench.settled(2)
        bench.actuation.configure(RULES, {"valve": VALVE}, bench.outputs)
        await asyncio.sleep(0)
        assert len(bench.actions) == 2


async def test_a_rule_that_is_removed_lets_go_and_a_new_output_is_driven() -> None:
    bench = Bench({"valve": VALVE, "fan": ActuatorSpec(safe_state="off")})
    async with bench.running():
        await bench.settled(2)
        bench.fire("supply")
        await bench.settled(3)
        new = Panel()
        bench.actuation.configure(RULES[1:], {"valve": VALVE}, {"valve": Output(new, "new/valve")})
        await bench.settled(6)
        assert sorted((action.actuator, action.state, action.outcome) for action in bench.actions[3:]) == [
            ("fan", "off", DONE),
            ("valve", "closed", DONE),
            ("valve", "closed", REFUSED),
        ]
        assert new.calls == [("new/valve", "closed")]
        assert bench.actuation.states() == {"valve": "closed"}


async def test_a_then_that_cannot_be_read_changes_nothing() -> None:
    bench = Bench()
    with pytest.raises(InputError, match="did you mean `close`"):
        bench.actuation.configure([RuleSpec(rule="r", when="true", then={"clos": "valve"})], {}, {})
    assert bench.actuation.wanted() == {"valve": "closed"}


async def test_a_rule_that_asks_for_an_unknown_state_is_refused_and_recorded() -> None:
    bench = Bench()
    bench.actuation.configure([RuleSpec(rule="r", when="true", then={"start": "valve"})], {"valve": VALVE}, bench.outputs)
    async with bench.running():
        bench.fire("r")
        assert ("running", REFUSED) in await bench.settled(2)
