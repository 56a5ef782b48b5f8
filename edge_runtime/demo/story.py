"""The demo's plot: what happens, in which order, and how each step is known to be true. Every step waits for a fact, never for time.

joined -> sensor node heard (where one can be emulated) -> good push confirmed -> bad push taken back -> fault injected -> detected -> valve
closed -> broker killed -> keeps acting, on the node too -> gateway killed -> back -> outbox drained -> ledger balanced
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edge_runtime.demo.fleet import FleetStage, bad_model, good_model
from edge_runtime.demo.node import FAN_PIN, HOT_CELSIUS, ROOM_CELSIUS, EmulatedNode
from edge_runtime.demo.stage import GATEWAY, SinkCount
from edge_runtime.errors import DeadlineExceeded, EdgeRuntimeError
from edge_runtime.store import read_ledger

_STEP_TIMEOUT_S = 40.0
_POLL_S = 0.1
_ENOUGH = 20
_ENDS = ("confirmed", "reverted", "refused")

Status = dict[str, Any]


@dataclass
class Event:
    """One thing that happened; `sentence` is for people, `facts` for machines."""

    t_s: float
    event: str
    sentence: str
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The form of `demo --json`."""
        return {"t_s": round(self.t_s, 2), "event": self.event, "gateway": GATEWAY, **self.facts}


@dataclass
class Outcome:
    """How the demo ended."""

    ledger: dict[str, Any]
    sink: SinkCount
    problems: list[str]

    @property
    def ok(self) -> bool:
        return not self.problems


class Story:
    """Runs the plot over `duration_s`; `observe` gets every status and event, for the view."""

    def __init__(self, stage: FleetStage, duration_s: float, observe: Callable[[Event | Status], None]) -> None:
        self.stage = stage
        self.events: list[Event] = []
        self.rows_before_cut = 0
        self._duration_s = duration_s
        self._observe = observe
        self._begun = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._begun

    async def run(self) -> Outcome:
        """The whole plot. Raises DeadlineExceeded, naming the step, when one does not come true."""
        await self._healthy()
        await self._at(0.10)
        await self._good_push()
        await self._at(0.18)
        await self._bad_push()
        await self._at(0.36)
        await self._fault_online()
        await self._at(0.46)
        await self._cut_the_network()
        await self._act_offline()
        await self._at(0.62)
        await self._kill_the_gateway()
        await self._at(0.78)
        await self._restore_and_drain()
        await self._at(0.92)
        return await self._balance()

    async def _healthy(self) -> None:
        broker = await self.stage.start_broker()
        await self.stage.start_sink()
        await self.stage.join()
        await self.stage.start_gateway()
        self._tell("started", f"A gateway, a controller and a broker ({broker}) are running.", broker=broker)
        await self._until("the link to the controller is up", lambda s: s["link"]["up"])
        self._tell("link_up", "The gateway has found its controller.")
        await self._until("the pump is judged healthy and the valve is open", lambda s: valve(s) == "open")
        self._tell("healthy", "The model calls the pump healthy, so a rule opens the valve: water flows.")
        await self._node_is_there()

    async def _node_is_there(self) -> None:
        if self.stage.node is None:
            self._tell("node_absent", f"Its motor has no sensor node in this demo: {self.stage.node_missing}")
            return
        status = await self._until("the sensor node is heard", lambda s: _reading(s, "motor_state") == 0)
        celsius = _reading(status, "motor_temperature")
        text = f"A microcontroller at its motor (emulated, our firmware) measures {celsius:.1f} degC and judges by itself: normal."
        self._tell("node_heard", text, celsius=celsius)

    async def _good_push(self) -> None:
        changes = {"bearing.score > 0.8": "bearing.score > 0.7", "sync:": "health: {probation_s: 2}\n\nsync:"}
        revision = await self.stage.push(good_model(), "good", changes)
        self._tell("pushed", "The controller pushes a signed deployment: the model by digest, a more careful rule.", revision=revision)
        status = await self._until("the good push is confirmed", lambda s: _phase(s, revision) in _ENDS)
        self._end_of_push(status, "confirmed", "push_confirmed", "Verified, tried, switched, two seconds on probation: confirmed.")
        enough = answers(status) + _ENOUGH
        await self._until("there are answers to hold the next one against", lambda s: answers(s) >= enough)

    async def _bad_push(self) -> None:
        revision = await self.stage.push(bad_model(), "bad", {"sync:": "health: {probation_s: 30}\n\nsync:"})
        self._tell("pushed", "Now a bad one: signed, it loads and passes its trial run, and cries wolf in service.", revision=revision)
        status = await self._until("the bad push is taken back", lambda s: _phase(s, revision) in _ENDS)
        self._end_of_push(status, "reverted", "push_reverted", "The gateway saw its answers drift and went back by itself.")
        await self._until("the valve is open again", lambda s: valve(s) == "open")

    def _end_of_push(self, status: Status, wanted: str, event: str, sentence: str) -> None:
        told = status["deployment"]
        if told["phase"] != wanted:
            raise EdgeRuntimeError(f"push: expected {wanted}, got {told['phase']}: {told['reason']} {told['message']}")
        self._tell(event, sentence, revision=told["revision"], reason=told["reason"], after_s=self._since("pushed"))

    async def _fault_online(self) -> None:
        await self._inject("outer_race", "A bearing of the pump is damaged (outer race).")
        status = await self._until("the fault is detected", lambda s: "bearing_fault" in s["rules"]["active"])
        seen = status["pipelines"]["bearing"]
        text = f"The INT8 model on the gateway hears it: {str(seen['label']).replace('_', ' ')}, {seen['score']:.0%} sure."
        self._tell(
            "detected", text, label=seen["label"], score=seen["score"], latency_ms=seen["latency_ms"], after_s=self._since("fault_injected")
        )
        await self._until("the valve is closed", lambda s: valve(s) == "closed")
        self._tell(
            "actuated",
            "A rule closes the valve. No cloud was asked.",
            actuator="valve",
            state="closed",
            after_s=self._since("fault_injected"),
        )

    async def _cut_the_network(self) -> None:
        self.rows_before_cut = await asyncio.to_thread(self.stage.sink_rows)
        await self.stage.kill("broker")
        await self._until("the gateway notices the cut", lambda s: not s["link"]["up"])
        self._tell("link_cut", "The broker is killed: the gateway is alone now.", rows=self.rows_before_cut)

    async def _act_offline(self) -> None:
        self.stage.set_faults({})
        await self._until("the repaired pump gets its valve opened offline", lambda s: valve(s) == "open")
        self._tell("acted_offline", "The bearing is repaired: offline, the gateway opens the valve again.", actuator="valve", state="open")
        await self._inject("inner_race", "Another bearing breaks (inner race), still without network.")
        await self._until("the valve is closed offline", lambda s: valve(s) == "closed")
        self._tell(
            "acted_offline",
            "The gateway closes the valve by itself.",
            actuator="valve",
            state="closed",
            after_s=self._since("fault_injected"),
        )
        if self.stage.node:
            await self.stage.node.heat(HOT_CELSIUS)
            await self._fan_is(self.stage.node, running=True)
            text = "The motor runs hot: the node's own INT8 model says so, and a rule starts the fan at the node."
            self._tell("node_acted", text, celsius=HOT_CELSIUS, pin=FAN_PIN, level=1)

    async def _kill_the_gateway(self) -> None:
        pending = (await self.stage.status()).get("ledger", {}).get("pending", 0)
        await self.stage.kill("gateway")
        self._tell("killed", f"The gateway is killed with SIGKILL; {pending} records wait on its disk.", pending=pending)
        if self.stage.node:
            await self._fan_is(self.stage.node, running=False)
            text = "The node, left alone, stops the fan by itself: its lease ran out."
            self._tell("node_safe", text, pin=FAN_PIN, level=0, after_s=self._since("killed"))
        begun = time.monotonic()
        await self.stage.start_gateway()
        self._tell("restarted", "It is back, without any network.", after_s=round(time.monotonic() - begun, 2))
        await self._until("the fault is heard again after the restart", lambda s: _heard(s) and "bearing_fault" in s["rules"]["active"])
        self._tell("detected", "It hears the fault again and keeps the valve closed.", after_s=self._since("killed"))

    async def _restore_and_drain(self) -> None:
        await self.stage.start_broker()
        await self._until("the link is back", lambda s: s["link"]["up"])
        self._tell("link_restored", "The broker is back.")
        self.stage.set_faults({})
        if self.stage.node:
            await self.stage.node.heat(ROOM_CELSIUS)
        await self._until("the outbox has drained", lambda s: s["ledger"]["pending"] <= 20)
        rows = await asyncio.to_thread(self.stage.sink_rows)
        self._tell("drained", f"Everything stored meanwhile has arrived: {rows - self.rows_before_cut} records.", rows=rows)
        await self._until("the repaired pump supplies water", lambda s: valve(s) == "open")
        self._tell("healthy", "The pump is repaired; the valve is open again.")

    async def _balance(self) -> Outcome:
        stop_s = await self.stage.stop("gateway")
        ledger = await asyncio.to_thread(read_ledger, self.stage.state_dir)
        self._tell("stopped", f"The gateway stopped in {stop_s:.1f} s.", stop_s=round(stop_s, 2))
        await self.stage.stop("controller")
        count = await asyncio.to_thread(self.stage.compare)
        outcome = Outcome(ledger.as_dict(), count, _problems(ledger.as_dict(), count))
        self._tell(
            "balanced" if outcome.ok else "unbalanced",
            f"Ledger: {ledger.offered} offered = {ledger.delivered} delivered + {ledger.pending} pending, "
            f"{ledger.dropped_total} dropped; {count.rows} rows in the controller's database, {count.missing} missing.",
            ledger=ledger.as_dict(),
        )
        return outcome

    async def _fan_is(self, node: EmulatedNode, *, running: bool) -> None:
        async with asyncio.timeout(_STEP_TIMEOUT_S):
            while bool(await node.fan()) is not running:
                self._observe(await self.stage.status())
                await asyncio.sleep(_POLL_S)

    async def _inject(self, fault: str, sentence: str) -> None:
        self.stage.set_faults({fault: 0.9})
        self._tell("fault_injected", sentence, fault=fault, severity=0.9)

    async def _at(self, fraction: float) -> None:
        """Waits for the step's place in the plot, so that a person can follow; a late plot goes on at once."""
        while self.elapsed_s < fraction * self._duration_s:
            self._observe(await self.stage.status())
            await asyncio.sleep(_POLL_S)

    async def _until(self, what: str, condition: Callable[[Status], bool]) -> Status:
        deadline = time.monotonic() + _STEP_TIMEOUT_S
        while time.monotonic() < deadline:
            status = await self.stage.status()
            self._observe(status)
            if status.get("ready") and condition(status):
                return status
            await asyncio.sleep(_POLL_S)
        raise DeadlineExceeded(f"{what}: not within {_STEP_TIMEOUT_S:g} s; logs are in {self.stage.directory}")

    def _tell(self, event: str, sentence: str, **facts: Any) -> None:
        told = Event(self.elapsed_s, event, sentence, facts)
        self.events.append(told)
        self._observe(told)

    def _since(self, event: str) -> float:
        """Seconds since the latest event of that name."""
        return round(self.elapsed_s - next(e.t_s for e in reversed(self.events) if e.event == event), 2)


def valve(status: Status) -> str:
    """The valve's state as the actuator reports it."""
    return str(status["actuators"]["valve"]["state"])


def answers(status: Status) -> int:
    """How often the model has answered since the gateway started."""
    return int(status["pipelines"].get("bearing", {}).get("count", 0))


def _reading(status: Status, channel: str) -> float | None:
    value: float | None = status["channels"].get(channel, {}).get("value")
    return value


def _phase(status: Status, revision: int) -> str:
    """What became of a revision, or nothing yet."""
    told = status["deployment"]
    return str(told["phase"]) if told["revision"] == revision else ""


def _heard(status: Status) -> bool:
    return status["pipelines"].get("bearing", {}).get("label") not in (None, "normal")


def _problems(ledger: dict[str, Any], sink: SinkCount) -> list[str]:
    problems = []
    if ledger["dropped"]:
        problems.append(f"{sum(ledger['dropped'].values())} records were dropped: {ledger['dropped']}")
    if ledger["pending"]:
        problems.append(f"{ledger['pending']} records are still pending")
    if ledger["offered"] != ledger["delivered"] + ledger["pending"] + sum(ledger["dropped"].values()):
        problems.append(f"the ledger does not balance: {ledger}")
    if sink.missing:
        problems.append(f"{sink.missing} delivered records are missing in the controller's database")
    if sink.rows != ledger["delivered"]:
        problems.append(f"{ledger['delivered']} delivered, but {sink.rows} rows in the controller's database")
    return problems
