"""The rule engine, first cut: forward, edge-triggered, one pass. Pure: facts and time come in, decisions come out.

A value that arrives looks only at the atoms it changes; a step evaluates only rules with a changed atom or a timer that is due.
A step where nothing changed costs two comparisons. Rules do not derive facts for one another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any

import msgspec

from edge_runtime.config.deployment import RuleSpec
from edge_runtime.errors import InputError, RuleError
from edge_runtime.reasoning.explain import premises
from edge_runtime.reasoning.facts import FactType, Value
from edge_runtime.reasoning.language import parse
from edge_runtime.reasoning.network import Network, Watcher
from edge_runtime.reasoning.rule import RULE_CHANGED, RULE_REMOVED, Rule, RuleState
from edge_runtime.reasoning.semantics import Compiled, compile_condition, refuse_timers
from edge_runtime.reasoning.timers import Timer
from edge_runtime.types import Decision, DecisionKind, Premise, Timestamp

_SNAPSHOT_VERSION = 1
_SPARE_DEADLINES = 64

_Deadline = tuple[int, tuple[int, int], int, Rule]
"""(monotonic ns, rank of the rule, index of the timer, rule)"""


class Engine:
    """Rules over facts. Raises RuleError, naming the rule, when one does not parse or fit.

    `boot` makes decision ids unique: `<boot>-<n>`. Step after every `set` (or batch of sets at one instant): a condition that
    becomes false and true again between two steps is not seen to have been false.
    """

    def __init__(self, rules: Sequence[RuleSpec], facts: Mapping[str, FactType], *, revision: str, boot: str) -> None:
        self._network = Network(dict(facts))
        self._slots = self._network.slots
        self._touched = self._network.touched
        self._revision = revision
        self._boot = boot
        self._count = 0
        self._now_ns = 0
        self._wall_ns = 0
        self._active: dict[str, Decision] = {}
        self._due: list[_Deadline] = []
        self._restored: _Restored | None = None
        self._rules: dict[str, Rule] = {}
        for place, spec in enumerate(rules):
            if spec.rule in self._rules:
                raise RuleError(f"rule {spec.rule}: the name is taken by an earlier rule; rename one of them")
            self._rules[spec.rule] = rule = self._build(spec, place)
            self._touch(rule)
        self._timers = sum(len(rule.timers) for rule in self._rules.values())

    def set(self, fact: str, value: Value, *, at_ns: int, seq: int = 0, digest: str = "", stale: bool = False) -> bool:
        """Takes a fact's new value (None, NaN or another type than the fact's: unknown). True when a rule is to be evaluated.

        `at_ns` is the monotonic time of the value, `seq` its reading, `digest` that of the model it came from; `stale` says that
        nothing new has arrived in time. A fact that no rule names is ignored.
        """
        slot = self._slots.get(fact)
        if slot is None:
            return False
        slot.at_ns = at_ns
        slot.seq = seq
        slot.digest = digest
        value = slot.admit(value)
        if value != slot.value or stale is not slot.stale:
            slot.change(value, stale)
        return bool(self._touched)

    def step(self, now: Timestamp) -> list[Decision]:
        """Evaluates what changed and what is due; decisions by priority (highest first), then in the order of the document.

        The monotonic time never goes back: an earlier `now` than the last is judged as the last.
        """
        now_ns = max(now.mono_ns, self._now_ns)
        self._now_ns, self._wall_ns = now_ns, now.wall_ns
        due, touched = self._due, self._touched
        decisions: list[Decision] = []
        if self._restored is not None:
            self._resume(self._restored, now_ns, now.wall_ns)
            decisions += self._release_orphans(self._restored, now)
            self._restored = None
        if due and due[0][0] <= now_ns:
            self._take_due(now_ns)
        if not touched:
            return decisions
        ready: list[Any] = sorted(touched, key=_rank) if len(touched) > 1 else [*touched]
        touched.clear()
        for rule in ready:
            rule.touched = False
            kind = rule.evaluate(now_ns)
            if rule.timers:
                self._schedule(rule)
            if kind is not None:
                decisions.append(self._decide(rule, kind, now))
        return decisions

    def next_deadline_ns(self) -> int | None:
        """Monotonic time at which the next `for` may complete: call `step` then."""
        due = self._due
        while due and not _is_current(due[0]):
            heappop(due)
        return due[0][0] if due else None

    @property
    def active(self) -> dict[str, Decision]:
        """The rules that hold now, each with the decision that fired it."""
        return dict(self._active)

    def sustained(self) -> tuple[str, ...]:
        """The active rules that are known to hold: what decides on their release is not unknown. These may renew leases."""
        return tuple(name for name in self._active if self._rules[name].sustained())

    def explain(self, rule: str) -> tuple[Premise, ...]:
        """How the condition that decides on the rule's next change stands: `until` while it is active, else `when`.

        Raises InputError for an unknown rule.
        """
        try:
            found = self._rules[rule]
        except KeyError:
            raise InputError(f"no rule `{rule}` (known: {', '.join(self._rules) or 'none'})") from None
        return premises(found.deciding, self._now_ns)

    def watch(self, text: str) -> Callable[[], bool | None]:
        """The present truth of a condition over the same facts, for whoever asks. Raises RuleError; `for` has no place here."""
        compiled = compile_condition(parse(text), self._network)
        refuse_timers(compiled)
        return compiled.truth

    def snapshot(self) -> dict[str, Any]:
        """What must survive a restart: latched rules and the times seen by `for`, as plain values (for JSON or MessagePack)."""
        if self._restored is not None:
            return dict(self._restored.document)
        now_ns = self._now_ns
        rules = {name: _remember(rule, now_ns) for name, rule in self._rules.items() if _is_worth_keeping(rule, now_ns)}
        return {"version": _SNAPSHOT_VERSION, "wall_ns": self._wall_ns, "rules": rules}

    def restore(self, document: Mapping[str, Any]) -> None:
        """Takes up a snapshot, before the first step. A rule whose conditions changed or that is gone is released at that step.

        Facts are unknown until they are set again, so nothing fires or releases by itself. Raises InputError when the snapshot is
        damaged or of another version; the engine is then as new.
        """
        memory = _read_snapshot(document)
        restored = self._restored = _Restored(document, memory.wall_ns, [], [])
        for name, kept in memory.rules.items():
            rule = self._rules.get(name)
            if rule is not None and (kept.when, kept.until) == (rule.spec.when, rule.spec.until) and len(kept.timers) == len(rule.timers):
                self._recall(rule, kept, restored)
            elif kept.decision is not None:
                restored.orphans.append((name, kept.when, RULE_REMOVED if rule is None else RULE_CHANGED))

    def _build(self, spec: RuleSpec, place: int) -> Rule:
        when = self._compile(spec.rule, "when", spec.when)
        until = None if spec.until is None else self._compile(spec.rule, "until", spec.until)
        rule = Rule(spec, (-spec.priority, place), when, until)
        for condition in (when, until):
            for atom in condition.atoms() if condition else ():
                if rule not in atom.watchers:
                    atom.watchers += (rule,)
        return rule

    def _compile(self, rule: str, key: str, text: str) -> Compiled:
        try:
            return compile_condition(parse(text), self._network)
        except RuleError as err:
            raise RuleError(f"rule {rule}: {key}: {err}", err.column) from err

    def _touch(self, rule: Watcher) -> None:
        if not rule.touched:
            rule.touched = True
            self._touched.append(rule)

    def _take_due(self, now_ns: int) -> None:
        due = self._due
        while due and due[0][0] <= now_ns:
            entry = heappop(due)
            if _is_current(entry):
                self._touch(entry[3])

    def _schedule(self, rule: Rule) -> None:
        """Keeps one deadline per running timer; those that no longer hold are dropped when they come up or grow too many."""
        due = self._due
        for index, timer in enumerate(rule.timers):
            if timer.deadline_ns != timer.scheduled_ns:
                timer.scheduled_ns = timer.deadline_ns
                if timer.deadline_ns is not None:
                    heappush(due, (timer.deadline_ns, rule.rank, index, rule))
        if len(due) > _SPARE_DEADLINES + 2 * self._timers:
            due[:] = {entry[:3]: entry for entry in due if _is_current(entry)}.values()
            heapify(due)

    def _decide(self, rule: Rule, kind: DecisionKind, now: Timestamp) -> Decision:
        name, released = rule.spec.rule, kind is DecisionKind.RELEASED
        proving = rule.until if released and rule.until is not None else rule.when
        reason = rule.release_reason if released else ""
        proof = premises(proving, self._now_ns)
        decision = Decision(self._next_id(), kind, name, now, self._revision, proof, proving.condition.text, reason)
        if released:
            self._active.pop(name, None)
            rule.decision = None
        else:
            self._active[name] = rule.decision = decision
        return decision

    def _release_orphans(self, restored: _Restored, now: Timestamp) -> list[Decision]:
        return [
            Decision(self._next_id(), DecisionKind.RELEASED, name, now, self._revision, (), text, reason)
            for name, text, reason in restored.orphans
        ]

    def _resume(self, restored: _Restored, now_ns: int, wall_ns: int) -> None:
        gap_ns = max(0, wall_ns - restored.wall_ns)
        for timer, elapsed_ns in restored.timers:
            timer.resume(elapsed_ns, now_ns - gap_ns)

    def _next_id(self) -> str:
        self._count += 1
        return f"{self._boot}-{self._count}"

    def _recall(self, rule: Rule, kept: _RuleMemory, restored: _Restored) -> None:
        rule.state = kept.state
        if kept.decision is not None:
            rule.decision = self._active[rule.spec.rule] = kept.decision
        restored.timers.extend((timer, elapsed) for timer, elapsed in zip(rule.timers, kept.timers, strict=True) if elapsed)


class _RuleMemory(msgspec.Struct, frozen=True):
    """What a snapshot holds of one rule; `timers` are the times seen so far, in ns."""

    when: str
    until: str | None
    state: RuleState
    timers: tuple[int, ...] = ()
    decision: Decision | None = None


@dataclass(slots=True)
class _Restored:
    """What waits for the first step after a restart, when the time is known."""

    document: Mapping[str, Any]
    wall_ns: int
    timers: list[tuple[Timer, int]]
    orphans: list[tuple[str, str, str]]


class _Memory(msgspec.Struct, frozen=True):
    version: int
    wall_ns: int
    rules: dict[str, _RuleMemory]


def _rank(rule: Any) -> tuple[int, int]:
    rank: tuple[int, int] = rule.rank
    return rank


def _is_current(entry: _Deadline) -> bool:
    deadline_ns, _, index, rule = entry
    return rule.timers[index].deadline_ns == deadline_ns


def _is_worth_keeping(rule: Rule, now_ns: int) -> bool:
    return rule.state is not RuleState.IDLE or any(timer.elapsed_ns(now_ns) for timer in rule.timers)


def _remember(rule: Rule, now_ns: int) -> Any:
    timers = tuple(timer.elapsed_ns(now_ns) for timer in rule.timers)
    return msgspec.to_builtins(_RuleMemory(rule.spec.when, rule.spec.until, rule.state, timers, rule.decision))


def _read_snapshot(document: Mapping[str, Any]) -> _Memory:
    try:
        memory = msgspec.convert(document, _Memory)
    except msgspec.ValidationError as err:
        raise InputError(f"the rules' snapshot is damaged: {err}; rules start from nothing") from err
    if memory.version != _SNAPSHOT_VERSION:
        raise InputError(f"the rules' snapshot has version {memory.version}, expected {_SNAPSHOT_VERSION}; rules start from nothing")
    for name, kept in memory.rules.items():
        if (kept.state is RuleState.ACTIVE) != (kept.decision is not None):
            raise InputError(f"the rules' snapshot is damaged: rule {name} is {kept.state} without its decision; rules start from nothing")
    return memory
