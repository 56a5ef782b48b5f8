"""Which state every actuator shall have: claims with leases and priorities, else the safe state. Pure; time comes with each call.

A claim holds an actuator away from its safe state for one lease. A rule renews its claims while there is evidence for them; a
claim whose lease ran out does nothing, and comes to life again if it is renewed before it is released. A rule's claim to the safe
state itself needs no lease: lack of evidence must not hand the actuator to a lower claim. The live claim of the highest priority
wins, of equal ones that which has been alive longest. A change sooner than `min_interval_s` after the last one waits, unless it
is to the safe state; meanwhile the actuator stays where it is only if a live claim says so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edge_runtime.config.deployment import ActuatorSpec
from edge_runtime.errors import CommandRefused
from edge_runtime.types import Timestamp

MAX_REMEMBERED_IDS = 1024
_FUTURE_NS = 5 * 10**9
_FOREVER_NS = 2**63

STARTED = "start"
LEASE_EXPIRED = "lease expired"
ACTUATOR_REMOVED = "actuator removed"
RELEASED = "released"


@dataclass(frozen=True, slots=True)
class Command:
    """An actuator shall change to `state`. `seq` rises: of two commands to one actuator, the higher is the newer.

    `lease_s` is 0 for the safe state. `decision` is the id of the decision behind it, if there is one.
    """

    actuator: str
    state: str
    cause: str
    decision: str
    priority: int
    lease_s: float
    seq: int


@dataclass(frozen=True, slots=True)
class Request:
    """A command from outside: an operator, the controller. Valid for `valid_s` from `issued_wall_ns`, or until `expires_mono_ns`."""

    id: str
    actuator: str
    state: str
    issued_wall_ns: int | None = None
    valid_s: float = 30.0
    expires_mono_ns: int | None = None
    priority: int = 50
    lease_s: float | None = None  # default: the actuator's; never longer


@dataclass(slots=True)
class _Claim:
    holder: str
    state: str
    priority: int
    lease_ns: int
    until_ns: int
    order: int
    decision: str
    cause: str
    renewable: bool
    over: bool = False  # its lease has run out, and that has been acted upon


@dataclass(slots=True)
class _Actuator:
    name: str
    spec: ActuatorSpec
    claims: dict[str, _Claim]
    state: str
    changed_ns: int | None = None
    waiting: bool = False  # a change waits for min_interval_s

    def winner(self, now_ns: int) -> _Claim | None:
        return max(self.live(now_ns), key=lambda claim: (claim.priority, -claim.order), default=None)

    def live(self, now_ns: int) -> list[_Claim]:
        return [claim for claim in self.claims.values() if claim.until_ns > now_ns]

    def free_ns(self) -> int:
        """When the next change to another than the safe state may come."""
        return 0 if self.changed_ns is None else self.changed_ns + round(self.spec.min_interval_s * 1e9)


class Arbiter:
    """The claims on all actuators. Every call judges by the time it is given: a lease that has run out never acts."""

    def __init__(self, actuators: Mapping[str, ActuatorSpec]) -> None:
        self._actuators = {name: _Actuator(name, spec, {}, spec.safe_state) for name, spec in actuators.items()}
        self._holders: dict[str, list[str]] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._seq = 0
        self._order = 0

    def start(self, now_ns: int) -> list[Command]:
        """One command for every actuator, whatever state it may be in: that of its live claim, else the safe state."""
        return [self._change(actuator, actuator.winner(now_ns), now_ns, STARTED, "") for actuator in self._actuators.values()]

    def claim(
        self, holder: str, actuator: str, state: str, now_ns: int, *, priority: int = 50, decision: str = "", cause: str = ""
    ) -> list[Command]:
        """Holds `actuator` in `state` for one lease, which `renew` prolongs. A holder's newer claim replaces its older one.

        Raises CommandRefused for an unknown actuator or state.
        """
        target = self._target(actuator, state)
        lease_ns = _FOREVER_NS if state == target.spec.safe_state else round(target.spec.lease_s * 1e9)
        old = target.claims.get(holder)
        order = old.order if old is not None and old.priority == priority and old.until_ns > now_ns else self._next_order()
        claim = _Claim(holder, state, priority, lease_ns, now_ns + lease_ns, order, decision, cause or holder, True)
        self._add(target, claim)
        return self._settle(target, now_ns, RELEASED, decision)

    def request(self, request: Request, now: Timestamp) -> list[Command]:
        """Takes a command from outside, as a claim for one lease that is not renewed.

        Raises CommandRefused when it is stale, a duplicate, out-prioritised, or names an unknown actuator or state.
        """
        target = self._target(request.actuator, request.state)
        self._refuse_stale(request, now)
        self._refuse_duplicate(request.id)
        winner = target.winner(now.mono_ns)
        if winner is not None and winner.priority >= request.priority:
            raise CommandRefused(
                f"command {request.id}: {winner.cause} holds `{target.name}` in `{winner.state}` with priority {winner.priority}, "
                f"the command has {request.priority}"
            )
        lease_s = min(target.spec.lease_s, target.spec.lease_s if request.lease_s is None else request.lease_s)
        if not lease_s > 0:
            raise CommandRefused(f"command {request.id}: expected a lease above 0 s, got {request.lease_s}")
        cause = holder = request_holder(request.id)
        lease_ns = max(1, round(lease_s * 1e9))
        until_ns = now.mono_ns + lease_ns
        self._add(target, _Claim(holder, request.state, request.priority, lease_ns, until_ns, self._next_order(), "", cause, False))
        return self._settle(target, now.mono_ns, RELEASED, "")

    def renew(self, holder: str, now_ns: int) -> list[Command]:
        """Prolongs all claims of a rule by one lease from now; one that had run out lives again, behind its equals."""
        commands: list[Command] = []
        for actuator in self._claimed_by(holder):
            claim = actuator.claims[holder]
            if not claim.renewable:
                continue
            revived = claim.until_ns <= now_ns
            claim.until_ns, claim.over = now_ns + claim.lease_ns, False
            if revived:
                claim.order = self._next_order()
                commands += self._settle(actuator, now_ns, LEASE_EXPIRED, "")
        return commands

    def release(self, holder: str, now_ns: int, *, cause: str = "", decision: str = "") -> list[Command]:
        """Ends all claims of a holder; unknown holders are ignored. `cause` and `decision` explain a return to the safe state."""
        commands: list[Command] = []
        for actuator in self._claimed_by(holder):
            del actuator.claims[holder]
            commands += self._settle(actuator, now_ns, cause or f"{RELEASED}: {holder}", decision)
        self._holders.pop(holder, None)
        return commands

    def expire(self, now_ns: int) -> list[Command]:
        """What follows from time alone: leases that ran out, changes that had to wait."""
        commands: list[Command] = []
        for actuator in self._actuators.values():
            over = [claim for claim in actuator.claims.values() if claim.until_ns <= now_ns and not claim.over]
            last = max(over, key=lambda claim: claim.until_ns, default=None)
            cause = LEASE_EXPIRED if last is None else f"{LEASE_EXPIRED}: {last.cause}"
            for claim in over:
                claim.over = True
                if not claim.renewable:
                    self._forget(actuator, claim.holder)
            commands += self._settle(actuator, now_ns, cause, "" if last is None else last.decision)
        return commands

    def next_deadline_ns(self) -> int | None:
        """Monotonic time at which `expire` may have something to do."""
        return min(self._deadlines(), default=None)

    def states(self) -> dict[str, str]:
        """The state that every actuator shall have now."""
        return {name: actuator.state for name, actuator in self._actuators.items()}

    def safe_states(self) -> dict[str, str]:
        """The safe state of every actuator."""
        return {name: actuator.spec.safe_state for name, actuator in self._actuators.items()}

    def holders(self, actuator: str, now_ns: int) -> tuple[str, ...]:
        """Who holds live claims on an actuator, the winner first."""
        return tuple(c.holder for c in sorted(self._actuators[actuator].live(now_ns), key=lambda c: (-c.priority, c.order)))

    def claims(self, holder: str) -> tuple[str, ...]:
        """The actuators that a holder claims, alive or not."""
        return tuple(actuator.name for actuator in self._claimed_by(holder))

    def repeat(self, actuator: str, now_ns: int, cause: str) -> Command:
        """The command that brings an actuator once more to the state that it shall have, such as after its device was away."""
        target = self._actuators[actuator]
        holding = [claim for claim in target.live(now_ns) if claim.state == target.state]
        return self._command(target, max(holding, key=lambda claim: (claim.priority, -claim.order), default=None), cause, "")

    def configure(self, actuators: Mapping[str, ActuatorSpec], now_ns: int) -> list[Command]:
        """Replaces the actuators. One whose spec stays the same keeps its claims; others start, and removed ones end, safe."""
        old, self._actuators = self._actuators, {}
        commands: list[Command] = []
        for name, spec in actuators.items():
            kept = old.pop(name, None)
            if kept is not None and kept.spec == spec:
                self._actuators[name] = kept
            else:
                fresh = self._actuators[name] = _Actuator(name, spec, {}, spec.safe_state)
                commands.append(self._change(fresh, None, now_ns, STARTED, ""))
        return commands + [self._change(gone, None, now_ns, ACTUATOR_REMOVED, "") for gone in old.values()]

    def _claimed_by(self, holder: str) -> list[_Actuator]:
        names = self._holders.get(holder, ())
        return [self._actuators[name] for name in names if name in self._actuators and holder in self._actuators[name].claims]

    def _add(self, actuator: _Actuator, claim: _Claim) -> None:
        actuator.claims[claim.holder] = claim
        names = self._holders.setdefault(claim.holder, [])
        if actuator.name not in names:
            names.append(actuator.name)

    def _forget(self, actuator: _Actuator, holder: str) -> None:
        del actuator.claims[holder]
        names = self._holders[holder]
        names.remove(actuator.name)
        if not names:
            del self._holders[holder]

    def _deadlines(self) -> Iterator[int]:
        for actuator in self._actuators.values():
            for claim in actuator.claims.values():
                if not claim.over and claim.until_ns < _FOREVER_NS:
                    yield claim.until_ns
            if actuator.waiting:
                yield actuator.free_ns()

    def _settle(self, actuator: _Actuator, now_ns: int, cause: str, decision: str) -> list[Command]:
        """The command that brings an actuator to the state it shall have now, if that is another one."""
        winner = actuator.winner(now_ns)
        safe = actuator.spec.safe_state
        state = safe if winner is None else winner.state
        actuator.waiting = False
        if state == actuator.state:
            return []
        commands: list[Command] = []
        if state != safe and now_ns < actuator.free_ns():
            if actuator.state != safe and all(claim.state != actuator.state for claim in actuator.live(now_ns)):
                commands.append(self._change(actuator, None, now_ns, cause, decision))
            actuator.waiting = True
            return commands
        return [self._change(actuator, winner, now_ns, cause, decision)]

    def _change(self, actuator: _Actuator, winner: _Claim | None, now_ns: int, cause: str, decision: str) -> Command:
        actuator.waiting = False
        actuator.changed_ns = now_ns
        actuator.state = actuator.spec.safe_state if winner is None else winner.state
        return self._command(actuator, winner, cause, decision)

    def _command(self, actuator: _Actuator, winner: _Claim | None, cause: str, decision: str) -> Command:
        self._seq += 1
        if winner is None:
            return Command(actuator.name, actuator.state, cause, decision, 0, 0.0, self._seq)
        lease_s = 0.0 if winner.lease_ns >= _FOREVER_NS else winner.lease_ns / 1e9
        return Command(actuator.name, winner.state, winner.cause, winner.decision, winner.priority, lease_s, self._seq)

    def _target(self, name: str, state: str) -> _Actuator:
        actuator = self._actuators.get(name)
        if actuator is None:
            raise CommandRefused(f"no actuator `{name}` in the deployment (known: {', '.join(self._actuators) or 'none'})")
        known = actuator.spec.states
        if known and state not in known and state != actuator.spec.safe_state:
            raise CommandRefused(f"actuator `{name}` has no state `{state}` (known: {', '.join(known)})")
        return actuator

    def _refuse_stale(self, request: Request, now: Timestamp) -> None:
        if request.expires_mono_ns is None and request.issued_wall_ns is None:
            raise CommandRefused(f"command {request.id}: it says neither when it was issued nor when it expires")
        if request.expires_mono_ns is not None and now.mono_ns >= request.expires_mono_ns:
            late_s = (now.mono_ns - request.expires_mono_ns) / 1e9
            raise CommandRefused(f"command {request.id}: stale, it expired {late_s:.1f} s ago; issue it again")
        if request.issued_wall_ns is not None:
            self._refuse_by_wall(request, request.issued_wall_ns, now)

    def _refuse_by_wall(self, request: Request, issued_ns: int, now: Timestamp) -> None:
        """The age by the wall clock, in doubt the older; a clock that is not synchronised cannot tell it."""
        if now.wall_err_ns < 0:
            if request.expires_mono_ns is None:
                raise CommandRefused(f"command {request.id}: its age cannot be told, for this gateway's clock is not synchronised")
            return
        age_ns = now.wall_ns - issued_ns
        if age_ns + now.wall_err_ns > request.valid_s * 1e9:
            raise CommandRefused(
                f"command {request.id}: stale, issued {age_ns / 1e9:.1f} s ago and valid for {request.valid_s:g} s; issue it again"
            )
        if age_ns < -(_FUTURE_NS + now.wall_err_ns):
            raise CommandRefused(f"command {request.id}: issued {-age_ns / 1e9:.1f} s in the future; check the clock of its sender")

    def _refuse_duplicate(self, identity: str) -> None:
        if identity in self._seen:
            raise CommandRefused(f"command {identity}: a duplicate, it was taken before")
        self._seen[identity] = None
        if len(self._seen) > MAX_REMEMBERED_IDS:
            self._seen.popitem(last=False)

    def _next_order(self) -> int:
        self._order += 1
        return self._order


def request_holder(identity: str) -> str:
    """The holder's name of a command from outside; no rule can have it."""
    return f"command:{identity}"
