"""The engine: what fires and is released, when, and with which proof."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.clock import VirtualClock
from edge_runtime.config.deployment import RuleSpec
from edge_runtime.errors import InputError, RuleError
from edge_runtime.reasoning import RuleEngine
from edge_runtime.reasoning.engine import Engine
from edge_runtime.reasoning.explain import describe, missing, render
from edge_runtime.reasoning.facts import FactType, Value
from edge_runtime.types import Decision, DecisionKind

FACTS = {
    "temp": FactType("number", "degC"),
    "x": FactType("number"),
    "maintenance": FactType("flag"),
    "ack": FactType("flag"),
    "bearing": FactType("label", labels=("normal", "outer_race")),
    "bearing.score": FactType("number"),
}


class Plant:
    """An engine with its clock: says what happened in words."""

    def __init__(self, *rules: RuleSpec, boot: str = "boot", clock: VirtualClock | None = None) -> None:
        self.clock = clock or VirtualClock()
        self.engine = Engine(rules, FACTS, revision="7", boot=boot)
        self.seq = 0

    def tell(self, **facts: Value) -> list[str]:
        for name, value in facts.items():
            self.seq += 1
            self.engine.set(name.replace("__", "."), value, at_ns=self.clock.monotonic_ns(), seq=self.seq)
        return self.step()

    def wait(self, seconds: float) -> list[str]:
        self.clock.advance(seconds)
        return self.step()

    def step(self) -> list[str]:
        return [_words(decision) for decision in self.decide()]

    def decide(self) -> list[Decision]:
        return self.engine.step(self.clock.now())

    def restarted(self, *rules: RuleSpec, down_s: float = 0.0, boot: str = "boot2") -> Plant:
        clock = VirtualClock(wall_ns=self.clock.now().wall_ns + round(down_s * 1e9))
        plant = Plant(*rules, boot=boot, clock=clock)
        plant.engine.restore(json.loads(json.dumps(self.engine.snapshot())))
        return plant


def _words(decision: Decision) -> str:
    return f"{decision.rule} {decision.kind.value}" + (f" ({decision.reason})" if decision.reason else "")


def rule(name: str, when: str, until: str | None = None, priority: int = 50) -> RuleSpec:
    return RuleSpec(rule=name, when=when, until=until, priority=priority)


def test_a_rule_fires_once_when_it_becomes_true_and_is_released_when_it_is_false() -> None:
    plant = Plant(rule("hot", "temp > 80 degC"))
    assert plant.tell(temp=79.0) == []
    assert plant.tell(temp=81.0) == ["hot fired"]
    assert plant.tell(temp=82.0) == []
    assert plant.tell(temp=80.0) == ["hot released (condition ended)"]


def test_hysteresis_holds_until_the_other_threshold() -> None:
    plant = Plant(rule("hot", "temp > 80 degC", until="temp < 75 degC"))
    assert plant.tell(temp=81.0) == ["hot fired"]
    assert plant.tell(temp=76.0) == []
    assert plant.tell(temp=74.0) == ["hot released (until)"]
    assert plant.tell(temp=76.0) == []


def test_a_latch_waits_for_the_acknowledgement_and_fires_again_only_when_that_is_taken_back() -> None:
    plant = Plant(rule("trip", "temp > 80 degC", until="ack"))
    plant.tell(ack=False)
    assert plant.tell(temp=81.0) == ["trip fired"]
    assert plant.tell(temp=20.0) == []
    assert plant.tell(temp=81.0) == []
    assert plant.tell(ack=True) == ["trip released (until)"]
    assert plant.tell(temp=82.0) == []
    assert plant.tell(ack=False) == ["trip fired"]


def test_until_that_is_true_already_keeps_a_rule_from_firing() -> None:
    plant = Plant(rule("trip", "temp > 80 degC", until="ack"))
    assert plant.tell(ack=True, temp=81.0) == []
    assert plant.tell(ack=False) == ["trip fired"]


def test_the_time_of_until_counts_from_the_firing() -> None:
    plant = Plant(rule("pulse", "temp > 80 degC", until="true for 60s"))
    assert plant.tell(temp=20.0) == []
    plant.wait(100)
    assert plant.tell(temp=81.0) == ["pulse fired"]
    assert plant.wait(59.9) == []
    assert plant.engine.next_deadline_ns() == 160_000_000_000
    assert plant.wait(0.1) == ["pulse released (until)"]
    assert plant.wait(100) == []
    assert plant.tell(temp=20.0) == []
    assert plant.tell(temp=81.0) == ["pulse fired"]


# -- unknown ------------------------------------------------------------------------------------------------------------------


def test_unknown_neither_fires_nor_releases() -> None:
    plant = Plant(rule("hot", "temp > 80 degC"), rule("cold", "not (temp > 80 degC)"))
    assert plant.step() == []
    assert plant.tell(temp=81.0) == ["hot fired"]
    assert plant.tell(temp=None) == []
    assert plant.tell(temp=81.0) == []
    assert plant.tell(temp=None) == []
    assert plant.tell(temp=70.0) == ["hot released (condition ended)", "cold fired"]


def test_a_rule_is_sustained_only_while_what_decides_on_its_release_is_known() -> None:
    plant = Plant(rule("hot", "temp > 80 degC or ack"), rule("latched", "temp > 80 degC", until="ack"))
    plant.tell(temp=81.0, ack=False)
    assert plant.engine.sustained() == ("hot", "latched")
    plant.tell(temp=None)
    assert plant.engine.sustained() == ("latched",)
    assert list(plant.engine.active) == ["hot", "latched"]
    plant.tell(ack=None)
    assert plant.engine.sustained() == ()


def test_known_and_stale_tell_of_the_fact_itself() -> None:
    plant = Plant(rule("blind", "not known(temp) or stale(temp)"))
    assert plant.step() == ["blind fired"]
    assert plant.tell(temp=20.0) == ["blind released (condition ended)"]
    plant.engine.set("temp", 20.0, at_ns=0, stale=True)
    assert plant.step() == ["blind fired"]
    plant.engine.set("temp", 20.0, at_ns=0)
    assert plant.step() == ["blind released (condition ended)"]


# -- for ----------------------------------------------------------------------------------------------------------------------


def test_for_needs_the_condition_to_be_true_all_the_time() -> None:
    plant = Plant(rule("hot", "temp > 80 degC for 5s"))
    assert plant.tell(temp=81.0) == []
    assert plant.engine.next_deadline_ns() == 5_000_000_000
    assert plant.wait(4.999) == []
    assert plant.tell(temp=79.0) == []
    assert plant.engine.next_deadline_ns() is None
    assert plant.tell(temp=81.0) == []
    assert plant.wait(4.999) == []
    assert plant.wait(0.001) == ["hot fired"]
    assert plant.tell(temp=79.0) == ["hot released (condition ended)"]


def test_unknown_stops_the_time_and_a_returning_sensor_does_not_fire_by_returning() -> None:
    plant = Plant(rule("hot", "temp > 80 degC for 5s"))
    plant.tell(temp=81.0)
    plant.wait(3)
    assert plant.tell(temp=None) == []
    assert plant.engine.next_deadline_ns() is None
    assert plant.wait(4) == []
    assert plant.tell(temp=81.0) == []
    assert plant.wait(1.9) == []
    assert plant.wait(0.1) == ["hot fired"]


def test_a_gap_longer_than_the_time_asked_for_starts_it_again() -> None:
    plant = Plant(rule("hot", "temp > 80 degC for 5s"))
    plant.tell(temp=81.0)
    plant.wait(4.9)
    plant.tell(temp=None)
    plant.wait(5.1)
    assert plant.tell(temp=81.0) == []
    assert plant.wait(4.9) == []
    assert plant.wait(0.1) == ["hot fired"]


def test_a_long_gap_does_not_release_a_rule_whose_condition_was_never_seen_false() -> None:
    plant = Plant(rule("hot", "temp > 80 degC for 5s"))
    plant.tell(temp=81.0)
    assert plant.wait(5) == ["hot fired"]
    plant.tell(temp=None)
    plant.wait(60)
    assert plant.tell(temp=81.0) == []
    assert plant.engine.sustained() == ()
    assert plant.wait(5) == []
    assert plant.engine.sustained() == ("hot",)
    assert plant.tell(temp=79.0) == ["hot released (condition ended)"]


def test_an_incomplete_time_is_false_only_where_the_condition_was_seen_false() -> None:
    plant = Plant(rule("dead", "not (ack for 5s)"))
    assert plant.tell(ack=True) == []
    assert plant.tell(ack=False) == ["dead fired"]
    assert plant.tell(ack=True) == []
    assert plant.wait(5) == ["dead released (condition ended)"]


def test_a_pulse_is_sustained_for_its_whole_time_also_over_a_restart() -> None:
    pulse = rule("pulse", "temp > 80 degC", until="true for 60s")
    plant = Plant(pulse)
    plant.tell(temp=81.0)
    plant.wait(20)
    assert plant.engine.sustained() == ("pulse",)
    again = plant.restarted(pulse)
    again.step()
    assert again.engine.sustained() == ("pulse",)
    assert again.wait(39.9) == []
    assert again.wait(0.1) == ["pulse released (until)"]


def test_a_time_goes_on_although_the_rest_of_the_rule_is_false() -> None:
    plant = Plant(rule("hot", "not maintenance and temp > 80 degC for 5s"))
    plant.tell(maintenance=True, temp=81.0)
    assert plant.wait(5) == []
    assert plant.tell(maintenance=False) == ["hot fired"]


def test_times_nest() -> None:
    plant = Plant(rule("deep", "(temp > 80 degC for 2s or ack) for 3s"))
    plant.tell(temp=81.0, ack=False)
    assert plant.wait(2) == []
    assert plant.engine.next_deadline_ns() == 5_000_000_000
    assert plant.wait(3) == ["deep fired"]


def test_a_time_that_stops_and_goes_on_at_the_same_instant_still_completes() -> None:
    plant = Plant(rule("hot", "temp > 80 degC for 5s"))
    plant.tell(temp=81.0)
    plant.tell(temp=None)
    assert plant.engine.next_deadline_ns() is None
    plant.tell(temp=81.0)
    assert plant.engine.next_deadline_ns() == 5_000_000_000
    assert plant.wait(5) == ["hot fired"]


def test_deadlines_that_no_longer_hold_do_not_pile_up() -> None:
    plant = Plant(rule("slow", "x > 1 for 10h"), rule("quick", "x > 1 for 1s"))
    for _ in range(2000):
        plant.tell(x=2.0)
        plant.clock.advance(0.001)
        plant.tell(x=0.0)
    assert len(plant.engine._due) < 100


@given(st.lists(st.tuples(st.sampled_from([True, False, None]), st.integers(1, 3000)), max_size=15))
def test_for_fires_exactly_when_the_time_known_to_be_true_is_long_enough(history: list[tuple[bool | None, int]]) -> None:
    """Against a plain model: milliseconds known true since last false, forgotten after a gap above the duration."""
    plant = Plant(rule("on", "ack for 2s"))
    seen = gap = 0
    active = False
    for truth, lasts_ms in history:
        plant.tell(ack=truth)
        for _ in range(lasts_ms // 100 + 1):
            plant.wait(0.1)
            if truth is True:
                if gap > 2000:
                    seen = 0
                gap = 0
                seen += 100
                active = active or seen >= 2000
            elif truth is None:
                gap += 100
            else:
                seen = gap = 0
                active = False
            assert bool(plant.engine.active) is active


# -- proof --------------------------------------------------------------------------------------------------------------------


def test_a_decision_carries_its_proof() -> None:
    plant = Plant(rule("fault", 'bearing != "normal" and bearing.score > 80 % for 500ms and not maintenance'))
    plant.engine.set("maintenance", False, at_ns=0)
    plant.engine.set("bearing", "outer_race", at_ns=5, seq=991, digest="sha256:ab")
    plant.engine.set("bearing.score", 0.93, at_ns=5, seq=991, digest="sha256:ab")
    plant.decide()
    plant.clock.advance(0.5)
    (decision,) = plant.decide()
    assert decision.id == "boot-1"
    assert decision.kind is DecisionKind.FIRED
    assert (decision.revision, decision.at) == ("7", plant.clock.now())
    label, score, flag = decision.premises
    assert (label.text, label.truth, label.value, label.seq, label.digest, label.mono_ns) == (
        'bearing != "normal"',
        True,
        "outer_race",
        991,
        "sha256:ab",
        5,
    )
    assert (score.text, score.truth, score.value) == ("bearing.score > 80 % for 500ms", True, 0.93)
    assert (flag.text, flag.truth, flag.value) == ("maintenance", False, False)
    assert "bearing.score > 80 % for 500ms: true, 0.93 (reading 991, model sha256:ab)" in render(decision)


def test_explain_tells_what_is_missing() -> None:
    plant = Plant(rule("hot", "temp > 80 degC for 5s and known(x)"))
    plant.tell(temp=20.0)
    plant.tell(temp=83.5)
    plant.wait(3.2)
    lacking = missing(plant.engine.explain("hot"))
    assert [describe(premise) for premise in lacking] == [
        "temp > 80 degC for 5s (seen for 3.2 s): false, 83.5 (reading 2)",
        "known(x): false",
    ]


def test_explain_of_an_active_rule_speaks_of_its_release() -> None:
    plant = Plant(rule("hot", "temp > 80 degC", until="temp < 75 degC"))
    plant.tell(temp=81.0)
    assert [premise.text for premise in plant.engine.explain("hot")] == ["temp < 75 degC"]


def test_the_proof_of_arithmetic_shows_the_value_and_the_newest_reading() -> None:
    plant = Plant(rule("apart", "temp - x * 1 degC > 3 degC"))
    plant.clock.advance(1)
    plant.tell(temp=10.0)
    plant.clock.advance(1)
    (decision,) = _told(plant, x=2.0)
    assert [(p.value, p.seq) for p in decision.premises] == [(8.0, 2)]


def _told(plant: Plant, **facts: Value) -> list[Decision]:
    for name, value in facts.items():
        plant.seq += 1
        plant.engine.set(name, value, at_ns=plant.clock.monotonic_ns(), seq=plant.seq)
    return plant.decide()


def test_a_part_that_is_written_twice_is_proved_once() -> None:
    plant = Plant(rule("twice", "x > 1 and (x > 1 or ack)"))
    (decision,) = _told(plant, x=2.0)
    assert [premise.text for premise in decision.premises] == ["x > 1", "ack"]


def test_labels_that_differ_in_spaces_only_are_different() -> None:
    engine = Engine([rule("r", "l == 'a b' or l == 'a  b'")], {"l": FactType("label")}, revision="1", boot="b")
    clock = VirtualClock()
    for label in ("a b", "a  b"):
        engine.set("l", label, at_ns=0)
        assert [_words(decision) for decision in engine.step(clock.now())] == ["r fired"]
        engine.set("l", "c", at_ns=0)
        assert [_words(decision) for decision in engine.step(clock.now())] == ["r released (condition ended)"]


def test_decisions_come_by_priority_then_in_the_order_of_the_document() -> None:
    plant = Plant(rule("low", "x > 1", priority=10), rule("first", "x > 1"), rule("second", "x > 2"), rule("high", "x > 1", priority=90))
    assert plant.tell(x=3.0) == ["high fired", "first fired", "second fired", "low fired"]


def test_a_fact_that_no_rule_names_and_one_that_flips_nothing_touch_no_rule() -> None:
    plant = Plant(rule("hot", "temp > 80 degC"))
    plant.step()
    assert plant.engine.set("x", 5.0, at_ns=0) is False
    assert plant.engine.set("temp", 20.0, at_ns=0) is True
    plant.step()
    assert plant.engine.set("temp", 21.0, at_ns=0) is False
    assert plant.engine.set("temp", 81.0, at_ns=0) is True


def test_a_watched_condition_follows_the_facts_without_being_a_rule() -> None:
    plant = Plant()
    truth = plant.engine.watch("x > 5 and not maintenance")
    assert truth() is None
    plant.tell(x=6.0, maintenance=False)
    assert truth() is True
    plant.tell(x=4.0)
    assert truth() is False
    with pytest.raises(RuleError, match="without `for`"):
        plant.engine.watch("x > 5 for 1s")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([rule("r", "temp >")], "rule r: when: column 7"),
        ([rule("r", "x > 1", until="bearing == 'nomal'")], "rule r: until: column 12.*`normal`"),
        ([rule("r", "x > 1"), rule("r", "x > 2")], "rule r: the name is taken"),
    ],
)
def test_a_bad_rule_is_named(rules: list[RuleSpec], message: str) -> None:
    with pytest.raises(RuleError, match=message):
        Engine(rules, FACTS, revision="1", boot="b")


def test_an_unknown_rule_cannot_be_explained() -> None:
    with pytest.raises(InputError, match="known: hot"):
        Plant(rule("hot", "x > 1")).engine.explain("cold")


# -- restart ------------------------------------------------------------------------------------------------------------------

HOT = rule("hot", "temp > 80 degC", until="temp < 75 degC")
SLOW = rule("slow", "x > 1 for 10s")


def test_a_latched_rule_survives_a_restart_without_firing_again() -> None:
    plant = Plant(HOT)
    plant.tell(temp=81.0)
    fired = plant.engine.active["hot"]
    again = plant.restarted(HOT)
    assert again.engine.active == {"hot": fired}
    assert again.step() == []
    assert again.engine.sustained() == ()
    assert again.tell(temp=78.0) == []
    assert again.engine.sustained() == ("hot",)
    (released,) = _told(again, temp=74.0)
    assert (released.id, released.reason) == ("boot2-1", "until")


def test_the_time_seen_by_for_survives_a_restart_but_the_time_that_the_gateway_was_down_does_not_count() -> None:
    plant = Plant(SLOW)
    plant.tell(x=2.0)
    plant.wait(7)
    again = plant.restarted(SLOW, down_s=5)
    assert again.tell(x=2.0) == []
    assert again.wait(2.9) == []
    assert again.wait(0.1) == ["slow fired"]


def test_a_snapshot_taken_before_the_first_step_is_the_one_that_was_restored() -> None:
    plant = Plant(HOT, SLOW)
    plant.tell(temp=81.0, x=2.0)
    plant.wait(7)
    assert plant.restarted(HOT, SLOW).engine.snapshot() == json.loads(json.dumps(plant.engine.snapshot()))


def test_a_time_that_goes_back_a_little_does_no_harm() -> None:
    plant = Plant(SLOW)
    plant.clock.advance(100)
    plant.tell(x=2.0)
    plant.engine.set("x", None, at_ns=0)
    assert plant.engine.step(VirtualClock(mono_ns=99 * 10**9).now()) == []
    plant.tell(x=2.0)
    assert plant.wait(9.9) == []
    assert plant.wait(0.1) == ["slow fired"]


def test_a_long_outage_starts_the_time_again() -> None:
    plant = Plant(SLOW)
    plant.tell(x=2.0)
    plant.wait(7)
    again = plant.restarted(SLOW, down_s=3600)
    again.tell(x=2.0)
    assert again.wait(9.9) == []
    assert again.wait(0.1) == ["slow fired"]


@pytest.mark.parametrize(
    ("rules", "reason"), [((), "rule removed"), ((rule("hot", "temp > 90 degC", until="temp < 75 degC"),), "rule changed")]
)
def test_a_rule_that_is_gone_or_changed_is_released_at_the_first_step(rules: tuple[RuleSpec, ...], reason: str) -> None:
    plant = Plant(HOT)
    plant.tell(temp=85.0)
    again = plant.restarted(*rules)
    assert again.engine.active == {}
    assert again.step() == [f"hot released ({reason})"]
    assert again.step() == []


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"version": 99, "wall_ns": 0, "rules": {}},
        {"version": 1, "wall_ns": 0, "rules": {"hot": {"when": "x"}}},
        {"version": 1, "wall_ns": 0, "rules": {"hot": {"when": "x", "until": None, "state": "active"}}},
        {"version": 1, "wall_ns": "soon", "rules": {}},
    ],
)
def test_a_damaged_snapshot_is_refused_and_changes_nothing(document: dict[str, Any]) -> None:
    plant = Plant(HOT)
    with pytest.raises(InputError, match="rules start from nothing"):
        plant.engine.restore(document)
    assert plant.engine.active == {}
    assert plant.tell(temp=81.0) == ["hot fired"]


def test_the_engine_is_what_the_runtime_asks_for() -> None:
    engine: RuleEngine = Plant(HOT).engine
    assert engine.next_deadline_ns() is None


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("x"), st.sampled_from([None, 0.0, 1.5, 3.0])),
            st.tuples(st.just("ack"), st.sampled_from([None, True, False])),
            st.tuples(st.just("wait"), st.sampled_from([0.5, 1.0, 2.0])),
        ),
        max_size=25,
    )
)
def test_decisions_alternate_and_agree_with_what_is_active(history: list[tuple[str, Any]]) -> None:
    plant = Plant(
        rule("plain", "x > 1"),
        rule("timed", "x > 1 for 1s or ack"),
        rule("latched", "x > 2", until="ack"),
        rule("pulse", "ack", until="true for 2s"),
    )
    active: set[str] = set()
    for name, value in history:
        happened = plant.wait(value) if name == "wait" else plant.tell(**{name: value})
        for words in happened:
            one, kind = words.split()[:2]
            assert (kind == "fired") is (one not in active)
            active ^= {one}
        assert set(plant.engine.active) == active
        due = plant.engine.next_deadline_ns()
        assert due is None or due > plant.clock.monotonic_ns()
