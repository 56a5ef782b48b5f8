"""Facts of a deployment: their names, types and values."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edge_runtime.config.deployment import Deployment
from edge_runtime.errors import InputError
from edge_runtime.pipeline.features import FEATURES, Features
from edge_runtime.reasoning.facts import FactType, fact_types, feature_facts, inference_facts
from edge_runtime.types import Inference, Quality, Timestamp

AT = Timestamp(0, 0, 0)
WINDOW = {"size": 64}


def deployment(**parts: Any) -> Deployment:
    return msgspec.convert({"schema": 1, **parts}, Deployment)


def test_sensors_are_numbers_and_flags_are_flags() -> None:
    types = fact_types(deployment(sensors={"temp": {"unit": "degC"}}, flags={"maintenance": False}), {})
    assert types == {"temp": FactType("number", "degC"), "maintenance": FactType("flag")}


def test_a_labelled_model_gives_its_label_its_score_and_every_score() -> None:
    pipelines = {"p": {"input": ["v"], "window": WINDOW, "model": "m", "output": "bearing"}}
    types = fact_types(deployment(sensors={"v": {}}, models={"m": {"path": "x"}}, pipelines=pipelines), {"m": ("normal", "outer_race")})
    assert types["bearing"] == FactType("label", labels=("normal", "outer_race"))
    assert {"bearing.score", "bearing.normal", "bearing.outer_race"} <= set(types)


def test_labels_of_the_deployment_count_where_the_model_brings_none() -> None:
    pipelines = {"p": {"input": ["v"], "window": WINDOW, "model": "m", "output": "state"}}
    types = fact_types(deployment(sensors={"v": {}}, models={"m": {"path": "x", "labels": ["on", "off"]}}, pipelines=pipelines), {})
    assert types["state"].labels == ("on", "off")


def test_a_model_without_labels_gives_a_number() -> None:
    pipelines = {"p": {"input": ["v"], "window": WINDOW, "model": "m", "output": "anomaly"}}
    assert fact_types(deployment(sensors={"v": {}}, models={"m": {"path": "x"}}, pipelines=pipelines), {})["anomaly"] == FactType("number")


def test_features_have_the_unit_of_their_input_but_for_ratios() -> None:
    pipelines = {"p": {"input": ["v"], "window": WINDOW, "preprocess": ["demean"], "output": "vib"}}
    types = fact_types(deployment(sensors={"v": {"unit": "m/s2"}}, pipelines=pipelines), {})
    assert {name for name in types if name != "v"} == {f"vib.{feature}" for feature in FEATURES}
    assert types["vib.rms"].unit == "m/s2"
    assert types["vib.crest"].unit == ""


def test_features_of_several_inputs_are_named_after_their_channel() -> None:
    pipelines = {"p": {"input": ["a", "b"], "window": WINDOW, "output": "both"}}
    types = fact_types(deployment(sensors={"a": {"unit": "A"}, "b": {"unit": "V"}}, pipelines=pipelines), {})
    assert (types["both.a.rms"].unit, types["both.b.rms"].unit) == ("A", "V")


def test_preprocessing_that_rescales_leaves_no_unit() -> None:
    pipelines = {"p": {"input": ["v"], "window": WINDOW, "preprocess": ["standardize"], "output": "vib"}}
    assert fact_types(deployment(sensors={"v": {"unit": "m/s2"}}, pipelines=pipelines), {})["vib.rms"].unit == ""


def test_two_things_that_would_give_one_fact_are_refused() -> None:
    with pytest.raises(InputError, match="flag `temp` gives the fact `temp`, which sensor `temp` gives already"):
        fact_types(deployment(sensors={"temp": {}}, flags={"temp": True}), {})


def inference(**changes: Any) -> Inference:
    values: dict[str, Any] = {"values": (0.1, 0.9), "label": "outer_race", "score": 0.9, **changes}
    return Inference("bearing", "m", "sha256:x", AT, 1, 64, **values)


def test_an_inference_gives_its_facts_under_the_name_of_its_output() -> None:
    assert inference_facts(inference(), ("normal", "outer_race"), "out") == {
        "out": "outer_race",
        "out.score": 0.9,
        "out.normal": 0.1,
        "out.outer_race": 0.9,
    }
    assert inference_facts(inference(label=None, score=None, values=(0.25,)), ()) == {"bearing": 0.25}


@pytest.mark.parametrize("quality", [Quality.STALE, Quality.BAD])
def test_a_bad_inference_makes_all_its_facts_unknown(quality: Quality) -> None:
    facts = inference_facts(inference(quality=quality), ("normal", "outer_race"))
    assert set(facts) == {"bearing", "bearing.score", "bearing.normal", "bearing.outer_race"}
    assert set(facts.values()) == {None}
    assert inference_facts(inference(quality=quality, values=()), ()) == {"bearing": None}


def test_a_label_named_score_does_not_hide_the_score() -> None:
    assert inference_facts(inference(), ("score", "outer_race"))["bearing.score"] == 0.9


def test_features_give_their_facts() -> None:
    features = Features("vib", AT, {"rms": 0.5, "crest": None}, 1, 64)
    assert feature_facts(features) == {"vib.rms": 0.5, "vib.crest": None}
    bad = Features("vib", AT, {"rms": 0.5}, 1, 64, Quality.BAD)
    assert feature_facts(bad, "out") == {"out.rms": None}
