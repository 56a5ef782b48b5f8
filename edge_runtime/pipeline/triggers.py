"""When a full window is inferred: every hop, while a condition holds, on a period, or when a rule fires. Pure decisions.

The condition of a threshold is given as a callable, for the language of rules is not known here.
"""

from __future__ import annotations

from collections.abc import Callable

from edge_runtime.config.deployment import TriggerSpec
from edge_runtime.errors import InputError

Truth = Callable[[], bool | None]
"""The present truth of a condition; None is unknown."""

Conditions = Callable[[str], Truth]
"""Compiles the text of a condition. Raises RuleError."""


class Trigger:
    """Never by itself: the kinds below say when."""

    def on_hop(self) -> bool:
        """Whether to infer the window that just became full."""
        return False

    def on_rule(self, rule: str) -> bool:
        """Whether to infer the latest full window because `rule` fired."""
        return False

    def due(self, now_ns: int) -> bool:
        """Whether to infer the latest full window now; asking moves the schedule on."""
        return False

    def deadline_ns(self) -> int | None:
        """Monotonic time at which `due` becomes true."""
        return None


class EveryHop(Trigger):
    """`kind: window`."""

    def on_hop(self) -> bool:
        return True


class WhileTrue(Trigger):
    """`kind: threshold`. An unknown condition infers nothing."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth

    def on_hop(self) -> bool:
        return self._truth() is True


class OnSchedule(Trigger):
    """`kind: schedule`. Periods that were missed are skipped, never made up for; the phase stays."""

    def __init__(self, every_s: float, now_ns: int) -> None:
        self._period_ns = max(1, round(every_s * 1e9))
        self._next_ns = now_ns + self._period_ns

    def due(self, now_ns: int) -> bool:
        if now_ns < self._next_ns:
            return False
        self._next_ns += ((now_ns - self._next_ns) // self._period_ns + 1) * self._period_ns
        return True

    def deadline_ns(self) -> int | None:
        return self._next_ns


class OnRule(Trigger):
    """`kind: event`."""

    def __init__(self, rule: str) -> None:
        self._rule = rule

    def on_rule(self, rule: str) -> bool:
        return rule == self._rule


def make_trigger(spec: TriggerSpec, now_ns: int, conditions: Conditions | None = None) -> Trigger:
    """The trigger that a pipeline asks for. Raises InputError naming the missing key, RuleError for a bad condition."""
    if spec.kind == "threshold":
        if not spec.when:
            raise InputError('a threshold trigger needs `when`, such as when: "rms > 0.5 m/s2"')
        if conditions is None:
            raise InputError("a threshold trigger needs the rules to judge its `when`, and none are loaded here")
        return WhileTrue(conditions(spec.when))
    if spec.kind == "schedule":
        if spec.every_s is None:
            raise InputError("a schedule trigger needs `every_s`, such as every_s: 60")
        return OnSchedule(spec.every_s, now_ns)
    if spec.kind == "event":
        if not spec.event:
            raise InputError("an event trigger needs `event`, the name of a rule")
        return OnRule(spec.event)
    return EveryHop()
