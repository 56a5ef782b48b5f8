"""One rule as a latch over two compiled conditions. Pure; says what changed, numbers nothing and keeps no history.

    IDLE    `when` true, `until` not already true      -> ACTIVE
    ACTIVE  `until` true (without `until`: `when` false) -> IDLE, or SPENT while `when` is not false
    SPENT   `when` false, or `until` false again       -> IDLE

Unknown moves nothing. The times of `for` inside `until` count from the firing on.
"""

from __future__ import annotations

from enum import StrEnum

from edge_runtime.config.deployment import RuleSpec
from edge_runtime.reasoning.network import Watcher
from edge_runtime.reasoning.semantics import Compiled
from edge_runtime.reasoning.timers import Timer
from edge_runtime.types import Decision, DecisionKind


class RuleState(StrEnum):
    """Where a rule stands."""

    IDLE = "idle"
    ACTIVE = "active"
    SPENT = "spent"


UNTIL = "until"
CONDITION_ENDED = "condition ended"
RULE_REMOVED = "rule removed"
RULE_CHANGED = "rule changed"


class Rule(Watcher):
    """`rank` orders rules: by priority, then by place in the document."""

    __slots__ = ("decision", "rank", "spec", "state", "timers", "until", "when")

    def __init__(self, spec: RuleSpec, rank: tuple[int, int], when: Compiled, until: Compiled | None) -> None:
        super().__init__()
        self.spec = spec
        self.rank = rank
        self.when = when
        self.until = until
        self.timers: tuple[Timer, ...] = when.timers + (until.timers if until else ())
        for timer in until.timers if until else ():
            timer.known_start = True
        self.state = RuleState.IDLE
        self.decision: Decision | None = None

    def evaluate(self, now_ns: int) -> DecisionKind | None:
        """What the rule does at `now_ns`."""
        for timer in self.when.timers:
            timer.update(now_ns)
        when = self.when.truth()
        if self.state is RuleState.ACTIVE:
            return self._hold(when, now_ns)
        if when is False:
            self.state = RuleState.IDLE
        if self.state is RuleState.SPENT and self._until(now_ns) is False:
            self.state = RuleState.IDLE
        return self._fire(now_ns) if when is True and self.state is RuleState.IDLE else None

    def sustained(self) -> bool:
        """Whether it is active and known to be so: what decides on its release is not unknown."""
        if self.state is not RuleState.ACTIVE:
            return False
        return (self.until or self.when).truth() is not None

    @property
    def deciding(self) -> Compiled:
        """The condition that decides on the next change."""
        return self.until if self.until is not None and self.state is RuleState.ACTIVE else self.when

    @property
    def release_reason(self) -> str:
        return UNTIL if self.until is not None else CONDITION_ENDED

    def _fire(self, now_ns: int) -> DecisionKind | None:
        if self.until is not None:
            for timer in self.until.timers:
                timer.reset()
            if self._until(now_ns) is True:
                return None
        self.state = RuleState.ACTIVE
        return DecisionKind.FIRED

    def _hold(self, when: bool | None, now_ns: int) -> DecisionKind | None:
        if self.until is None:
            if when is not False:
                return None
            self.state = RuleState.IDLE
        else:
            if self._until(now_ns) is not True:
                return None
            self.state = RuleState.IDLE if when is False else RuleState.SPENT
        return DecisionKind.RELEASED

    def _until(self, now_ns: int) -> bool | None:
        if self.until is None:
            return None
        for timer in self.until.timers:
            timer.update(now_ns)
        return self.until.truth()
