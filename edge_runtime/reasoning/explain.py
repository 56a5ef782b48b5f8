"""Proofs: the parts of a condition as they stand, as values and as words for people. Judges nothing."""

from __future__ import annotations

from collections.abc import Sequence

from edge_runtime.reasoning.semantics import Compiled, Leaf
from edge_runtime.reasoning.timers import Timer
from edge_runtime.types import Decision, DecisionKind, Premise

_TRUTHS = {True: "true", False: "false", None: "unknown"}


def premises(condition: Compiled, now_ns: int) -> tuple[Premise, ...]:
    """Each part once, in the order of the text, with the newest reading behind it."""
    return tuple([_premise(leaf, now_ns) for leaf in condition.leaves])


def render(decision: Decision) -> str:
    """A decision in words, one line for the rule and one for each premise."""
    verb = "fired" if decision.kind is DecisionKind.FIRED else f"released ({decision.reason})"
    head = f"{decision.rule} {verb} at revision {decision.revision}: {decision.text}"
    return "\n".join((head, *("  " + describe(premise) for premise in decision.premises)))


def describe(premise: Premise) -> str:
    """`temp > 80 degC: true, 83.2 (reading 991)`."""
    value = "" if premise.value is None else f", {premise.value:.6g}" if isinstance(premise.value, float) else f", {premise.value}"
    source = f" (reading {premise.seq}{', model ' + premise.digest[:19] if premise.digest else ''})" if premise.seq else ""
    return f"{premise.text}: {_TRUTHS[premise.truth]}{value}{source}"


def missing(proof: Sequence[Premise]) -> tuple[Premise, ...]:
    """Those that are not true: where to look when a rule does not fire."""
    return tuple(premise for premise in proof if premise.truth is not True)


def _premise(leaf: Leaf, now_ns: int) -> Premise:
    timer, atom = leaf.timer, leaf.atom
    if timer is not None:
        text, truth = _timed(leaf.text, timer, now_ns), timer.truth
    else:
        text, truth = leaf.text, atom.truth if atom is not None else None
    if atom is None or not atom.facts:
        return Premise(text, truth)
    newest = atom.facts[0] if len(atom.facts) == 1 else max(atom.facts, key=lambda slot: slot.at_ns)
    return Premise(text, truth, atom.read(), newest.seq, newest.digest, newest.at_ns)


def _timed(text: str, timer: Timer, now_ns: int) -> str:
    elapsed_ns = timer.elapsed_ns(now_ns)
    return text if timer.truth or not elapsed_ns else f"{text} (seen for {elapsed_ns / 1e9:.3g} s)"
