"""Triggers: when a window is inferred."""

from __future__ import annotations

import pytest

from edge_runtime.config.deployment import TriggerSpec
from edge_runtime.errors import InputError
from edge_runtime.pipeline.triggers import Truth, make_trigger

S = 10**9


def test_a_window_trigger_takes_every_hop() -> None:
    trigger = make_trigger(TriggerSpec(), 0)
    assert trigger.on_hop()
    assert trigger.deadline_ns() is None
    assert not trigger.due(10 * S)
    assert not trigger.on_rule("hot")


@pytest.mark.parametrize(("truth", "runs"), [(True, True), (False, False), (None, False)])
def test_a_threshold_infers_only_while_its_condition_is_true(truth: bool | None, runs: bool) -> None:
    asked: list[str] = []

    def conditions(text: str) -> Truth:
        asked.append(text)
        return lambda: truth

    trigger = make_trigger(TriggerSpec(kind="threshold", when="rms > 0.5 m/s2"), 0, conditions)
    assert trigger.on_hop() is runs
    assert asked == ["rms > 0.5 m/s2"]


def test_a_schedule_keeps_its_phase_and_skips_what_it_missed() -> None:
    trigger = make_trigger(TriggerSpec(kind="schedule", every_s=2), 10 * S)
    assert not trigger.on_hop()
    assert trigger.deadline_ns() == 12 * S
    assert not trigger.due(12 * S - 1)
    assert trigger.due(12 * S)
    assert not trigger.due(12 * S)
    assert trigger.due(19 * S)
    assert trigger.deadline_ns() == 20 * S


def test_an_event_trigger_hears_its_rule_only() -> None:
    trigger = make_trigger(TriggerSpec(kind="event", event="hot"), 0)
    assert trigger.on_rule("hot")
    assert not trigger.on_rule("cold")
    assert not trigger.on_hop()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TriggerSpec(kind="threshold"), "needs `when`"),
        (TriggerSpec(kind="threshold", when="x > 1"), "needs the rules"),
        (TriggerSpec(kind="schedule"), "needs `every_s`"),
        (TriggerSpec(kind="event"), "needs `event`"),
    ],
)
def test_a_trigger_without_its_key_is_refused(spec: TriggerSpec, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_trigger(spec, 0)
