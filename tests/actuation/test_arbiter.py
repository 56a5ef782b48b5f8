"""The arbiter: leases, priorities, safe states, and which commands from outside are refused."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edge_runtime.actuation.arbiter import MAX_REMEMBERED_IDS, Arbiter, Command, Request
from edge_runtime.config.deployment import ActuatorSpec
from edge_runtime.errors import CommandRefused
from edge_runtime.types import Timestamp

S = 10**9
WALL = 1_800_000_000 * S
VALVE = ActuatorSpec(safe_state="closed", lease_s=30, states=("open", "closed", "half"))


def arbiter(**changes: float) -> Arbiter:
    return Arbiter({"valve": ActuatorSpec(safe_state="closed", lease_s=30, states=VALVE.states, **changes)})


def at(seconds: float = 0.0, wall_err_ns: int = 0) -> Timestamp:
    return Timestamp(round(seconds * S), WALL + round(seconds * S), wall_err_ns)


def states(commands: list[Command]) -> list[str]:
    return [command.state for command in commands]


def test_without_a_claim_an_actuator_starts_in_its_safe_state() -> None:
    (command,) = arbiter().start(0)
    assert (command.state, command.cause, command.priority, command.lease_s) == ("closed", "start", 0, 0.0)


def test_a_claim_changes_the_state_and_carries_its_cause() -> None:
    (command,) = arbiter().claim("supply", "valve", "open", 0, priority=20, decision="boot-1")
    assert command == Command("valve", "open", "supply", "boot-1", 20, 30.0, 1)


def test_the_highest_priority_wins_and_the_next_takes_over_when_it_is_released() -> None:
    arb = arbiter()
    arb.claim("low", "valve", "open", 0, priority=20)
    assert states(arb.claim("high", "valve", "half", 0, priority=90)) == ["half"]
    assert arb.claim("middle", "valve", "open", 0, priority=50) == []
    (command,) = arb.release("high", S)
    assert (command.state, command.cause) == ("open", "middle")


def test_of_equal_claims_the_earlier_stays() -> None:
    arb = arbiter()
    arb.claim("first", "valve", "open", 0)
    assert arb.claim("second", "valve", "half", 0) == []
    assert arb.claim("first", "valve", "open", S) == []
    assert arb.holders("valve", S) == ("first", "second")


def test_a_lease_that_is_not_renewed_ends_in_the_safe_state() -> None:
    arb = arbiter()
    arb.claim("supply", "valve", "open", 0, decision="boot-1")
    assert arb.next_deadline_ns() == 30 * S
    assert arb.expire(30 * S - 1) == []
    (command,) = arb.expire(30 * S)
    assert (command.state, command.cause, command.decision) == ("closed", "lease expired: supply", "boot-1")
    assert arb.next_deadline_ns() is None


def test_renewing_prolongs_a_lease_and_revives_one_that_ran_out() -> None:
    arb = arbiter()
    arb.claim("supply", "valve", "open", 0)
    assert arb.renew("supply", 29 * S) == []
    assert arb.expire(30 * S) == []
    assert states(arb.expire(59 * S)) == ["closed"]
    assert arb.expire(60 * S) == []
    assert states(arb.renew("supply", 61 * S)) == ["open"]
    assert arb.next_deadline_ns() == 91 * S


def test_a_revived_claim_stands_behind_its_equals() -> None:
    arb = arbiter()
    arb.claim("old", "valve", "open", 0)
    arb.claim("new", "valve", "half", S)
    arb.renew("new", 29 * S)
    assert states(arb.expire(30 * S)) == ["half"]
    assert arb.renew("old", 31 * S) == []
    assert arb.holders("valve", 31 * S) == ("new", "old")


def test_a_claim_to_the_safe_state_is_not_lost_with_its_evidence() -> None:
    """A dead sensor behind a shut-off rule must not open the valve for a rule of lower priority."""
    arb = arbiter()
    arb.claim("supply", "valve", "open", 0, priority=20)
    assert states(arb.claim("fault", "valve", "closed", S, priority=90)) == ["closed"]
    arb.renew("supply", 100 * S)
    assert arb.expire(100 * S) == []
    assert arb.states() == {"valve": "closed"}
    assert states(arb.release("fault", 101 * S)) == ["open"]


def test_a_lease_judged_late_never_wins() -> None:
    arb = arbiter()
    arb.claim("stalled", "valve", "open", 0, priority=90)
    assert states(arb.claim("fresh", "valve", "half", 31 * S, priority=10)) == ["half"]


# -- min_interval_s -----------------------------------------------------------------------------------------------------------


def test_changes_wait_for_the_interval_but_never_on_the_way_to_the_safe_state() -> None:
    arb = arbiter(min_interval_s=10.0)
    assert states(arb.claim("a", "valve", "open", 0)) == ["open"]
    assert states(arb.release("a", S)) == ["closed"]
    assert arb.claim("a", "valve", "open", 2 * S) == []
    assert arb.next_deadline_ns() == 11 * S
    assert arb.expire(11 * S - 1) == []
    assert states(arb.expire(11 * S)) == ["open"]


def test_a_change_that_waits_and_is_released_does_not_come() -> None:
    arb = arbiter(min_interval_s=10.0)
    arb.start(0)
    arb.claim("a", "valve", "open", S)
    assert arb.release("a", 2 * S) == []
    assert arb.expire(20 * S) == []
    assert arb.next_deadline_ns() is None


def test_while_a_change_waits_the_actuator_is_safe_unless_a_live_claim_holds_it_where_it_is() -> None:
    arb = arbiter(min_interval_s=10.0)
    arb.claim("a", "valve", "open", 0)
    arb.claim("b", "valve", "half", S, priority=90)
    assert arb.states() == {"valve": "open"}
    assert states(arb.release("a", 2 * S)) == ["closed"]
    assert states(arb.expire(12 * S)) == ["half"]


# -- commands from outside ----------------------------------------------------------------------------------------------------


def test_a_command_holds_for_one_lease_and_is_not_renewed() -> None:
    arb = arbiter()
    (command,) = arb.request(Request("c1", "valve", "open", expires_mono_ns=5 * S), at(1))
    assert (command.state, command.cause) == ("open", "command:c1")
    assert arb.renew("command:c1", 20 * S) == []
    assert states(arb.expire(31 * S)) == ["closed"]
    assert arb.claims("command:c1") == ()


def test_a_command_may_ask_for_less_than_the_lease_never_for_more() -> None:
    arb = arbiter()
    arb.request(Request("c1", "valve", "open", expires_mono_ns=5 * S, lease_s=2), at(0))
    assert arb.next_deadline_ns() == 2 * S
    arb.request(Request("c2", "valve", "half", expires_mono_ns=5 * S, lease_s=999, priority=60), at(0))
    arb.release("command:c1", 0)
    assert arb.next_deadline_ns() == 30 * S


@pytest.mark.parametrize(
    ("request_", "now", "reason"),
    [
        (Request("c", "valve", "open", expires_mono_ns=5 * S), at(7), "stale, it expired 2.0 s ago"),
        (Request("c", "valve", "open", issued_wall_ns=WALL, valid_s=30), at(31), "stale, issued 31.0 s ago and valid for 30 s"),
        (Request("c", "valve", "open", issued_wall_ns=WALL, valid_s=30), at(29, wall_err_ns=2 * S), "stale"),
        (Request("c", "valve", "open", issued_wall_ns=WALL + 60 * S), at(0), "in the future"),
        (Request("c", "valve", "open", issued_wall_ns=WALL), at(0, wall_err_ns=-1), "clock is not synchronised"),
        (Request("c", "valve", "open"), at(0), "neither when it was issued nor when it expires"),
        (Request("c", "vlave", "open", expires_mono_ns=S), at(0), "no actuator `vlave` in the deployment .known: valve"),
        (Request("c", "valve", "ajar", expires_mono_ns=S), at(0), "no state `ajar` .known: open, closed, half"),
        (Request("c", "valve", "open", expires_mono_ns=S, lease_s=0), at(0), "a lease above 0 s"),
    ],
)
def test_a_command_that_is_stale_or_names_nothing_known_is_refused(request_: Request, now: Timestamp, reason: str) -> None:
    arb = arbiter()
    with pytest.raises(CommandRefused, match=reason):
        arb.request(request_, now)
    assert arb.states() == {"valve": "closed"}
    assert arb.next_deadline_ns() is None


def test_an_unsynchronised_clock_does_not_matter_where_the_expiry_is_monotonic() -> None:
    request = Request("c", "valve", "open", issued_wall_ns=0, expires_mono_ns=S)
    assert states(arbiter().request(request, at(0, wall_err_ns=-1))) == ["open"]


def test_a_command_is_taken_once() -> None:
    arb = arbiter()
    arb.request(Request("c1", "valve", "open", expires_mono_ns=5 * S), at(0))
    with pytest.raises(CommandRefused, match="duplicate"):
        arb.request(Request("c1", "valve", "half", expires_mono_ns=5 * S, priority=90), at(1))


def test_the_memory_of_ids_is_bounded() -> None:
    arb = arbiter()
    for n in range(MAX_REMEMBERED_IDS + 10):
        arb.request(Request(f"c{n}", "valve", "open", expires_mono_ns=5 * S), at(0))
        arb.release(f"command:c{n}", 0)
    assert len(arb._seen) == MAX_REMEMBERED_IDS


@pytest.mark.parametrize("priority", [20, 50])
def test_a_command_does_not_overrule_a_claim_of_its_own_or_higher_priority(priority: int) -> None:
    arb = arbiter()
    arb.claim("fault", "valve", "closed", 0, priority=50)
    with pytest.raises(CommandRefused, match="fault holds `valve` in `closed` with priority 50, the command has"):
        arb.request(Request("c", "valve", "open", expires_mono_ns=S, priority=priority), at(0))
    arb.release("fault", 0)
    assert arb.states() == {"valve": "closed"}


def test_a_rule_that_claims_what_does_not_exist_is_refused() -> None:
    with pytest.raises(CommandRefused, match="no state `ajar`"):
        arbiter().claim("r", "valve", "ajar", 0)


# -- change of the deployment -------------------------------------------------------------------------------------------------


def test_actuators_that_stay_the_same_keep_their_claims_others_become_safe() -> None:
    pump = ActuatorSpec(safe_state="stopped")
    arb = Arbiter({"valve": VALVE, "pump": pump, "fan": pump})
    for name, state in (("valve", "open"), ("pump", "running"), ("fan", "running")):
        arb.claim("r", name, state, 0)
    changed = {"valve": VALVE, "pump": ActuatorSpec(safe_state="stopped", lease_s=5), "lamp": ActuatorSpec(safe_state="off")}
    commands = {command.actuator: (command.state, command.cause) for command in arb.configure(changed, S)}
    assert commands == {"pump": ("stopped", "start"), "lamp": ("off", "start"), "fan": ("stopped", "actuator removed")}
    assert arb.states() == {"valve": "open", "pump": "stopped", "lamp": "off"}
    assert arb.claims("r") == ("valve",)
    assert [command.actuator for command in arb.release("r", S)] == ["valve"]


# -- invariants ---------------------------------------------------------------------------------------------------------------

_holders = st.sampled_from(["r1", "r2", "r3"])
_priorities = st.integers(0, 3)
_states = st.sampled_from(["open", "half", "closed"])


class Life(RuleBasedStateMachine):
    """Any sequence of claims, renewals, releases, commands and time, beside a plain model of the claims."""

    LEASE_S = 10

    def __init__(self) -> None:
        super().__init__()
        self.arb = Arbiter({"valve": ActuatorSpec(safe_state="closed", lease_s=self.LEASE_S)})
        self.now = 0
        self.hardware = self.take(self.arb.start(0))
        self.model: dict[str, tuple[str, int, float]] = {}
        self.count = 0
        self.last_seq = 0

    def take(self, commands: list[Command]) -> str:
        assert len(commands) <= 1
        for command in commands:
            assert command.seq > getattr(self, "last_seq", 0)
            self.last_seq = command.seq
            assert command.state != getattr(self, "hardware", None)
            self.hardware = command.state
        return self.hardware

    @rule(holder=_holders, state=_states, priority=_priorities)
    def claim(self, holder: str, state: str, priority: int) -> None:
        self.take(self.arb.claim(holder, "valve", state, self.now, priority=priority))
        self.model[holder] = (state, priority, float("inf") if state == "closed" else self.now + self.LEASE_S * S)

    @rule(holder=_holders)
    def renew(self, holder: str) -> None:
        self.take(self.arb.renew(holder, self.now))
        if holder in self.model:
            state, priority, until = self.model[holder]
            self.model[holder] = (state, priority, max(until, self.now + self.LEASE_S * S))

    @rule(holder=_holders)
    def release(self, holder: str) -> None:
        self.take(self.arb.release(holder, self.now))
        self.model.pop(holder, None)

    @rule(state=_states, priority=_priorities, lease_s=st.integers(1, 20))
    def command(self, state: str, priority: int, lease_s: int) -> None:
        self.count += 1
        request = Request(f"c{self.count}", "valve", state, expires_mono_ns=self.now + 1, priority=priority, lease_s=lease_s)
        try:
            self.take(self.arb.request(request, Timestamp(self.now, WALL, 0)))
        except CommandRefused:
            assert any(p >= priority for _, p, _ in self.live().values())
        else:
            self.model[f"command:c{self.count}"] = (state, priority, self.now + min(lease_s, self.LEASE_S) * S)

    @rule(seconds=st.sampled_from([0, 1, 5, 11]))
    def wait(self, seconds: int) -> None:
        self.now += seconds * S
        self.take(self.arb.expire(self.now))

    def live(self) -> dict[str, tuple[str, int, float]]:
        return {holder: claim for holder, claim in self.model.items() if claim[2] > self.now}

    @invariant()
    def the_highest_live_claim_holds_else_the_safe_state(self) -> None:
        live = self.live()
        assert self.arb.states() == {"valve": self.hardware}
        assert set(self.arb.holders("valve", self.now)) == set(live)
        if not live:
            assert self.hardware == "closed"
            return
        highest = max(priority for _, priority, _ in live.values())
        assert self.hardware in {state for state, priority, _ in live.values() if priority == highest}
        assert live[self.arb.holders("valve", self.now)[0]][0] == self.hardware

    @invariant()
    def the_next_deadline_is_the_end_of_a_live_lease(self) -> None:
        due = self.arb.next_deadline_ns()
        ends = [until for _, _, until in self.live().values() if until != float("inf")]
        assert due == min(ends, default=None)


class SlowLife(RuleBasedStateMachine):
    """The same with a minimum between changes: safety comes first, priority waits."""

    INTERVAL_S = 4

    def __init__(self) -> None:
        super().__init__()
        self.arb = Arbiter({"valve": ActuatorSpec(safe_state="closed", lease_s=10, min_interval_s=self.INTERVAL_S)})
        self.now = 0
        self.hardware = ""
        self.changed = -(10**18)
        self.take(self.arb.start(0))

    def take(self, commands: list[Command]) -> None:
        for command in commands:
            assert command.state == "closed" or self.now - self.changed >= self.INTERVAL_S * S
            self.hardware, self.changed = command.state, self.now

    @rule(holder=_holders, state=_states, priority=_priorities)
    def claim(self, holder: str, state: str, priority: int) -> None:
        self.take(self.arb.claim(holder, "valve", state, self.now, priority=priority))

    @rule(holder=_holders)
    def renew(self, holder: str) -> None:
        self.take(self.arb.renew(holder, self.now))

    @rule(holder=_holders)
    def release(self, holder: str) -> None:
        self.take(self.arb.release(holder, self.now))

    @rule(seconds=st.sampled_from([1, 3, 4, 11]))
    def wait(self, seconds: int) -> None:
        self.now += seconds * S
        self.take(self.arb.expire(self.now))

    @invariant()
    def away_from_the_safe_state_only_by_a_live_claim(self) -> None:
        wanted = {claim.state for claim in self.arb._actuators["valve"].live(self.now)}
        assert self.hardware == self.arb.states()["valve"]
        assert self.hardware == "closed" or self.hardware in wanted

    @invariant()
    def once_the_interval_is_over_the_winner_holds(self) -> None:
        winner = self.arb._actuators["valve"].winner(self.now)
        assert self.arb.expire(self.now) == []
        if self.now - self.changed >= self.INTERVAL_S * S:
            assert self.hardware == ("closed" if winner is None else winner.state)

    @invariant()
    def a_deadline_is_in_the_future(self) -> None:
        due = self.arb.next_deadline_ns()
        assert due is None or due > self.now


TestLife = Life.TestCase
TestSlowLife = SlowLife.TestCase
