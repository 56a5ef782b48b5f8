"""The examples in docs/rules.md are what the language takes."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from edge_runtime.config.deployment import Deployment
from edge_runtime.config.verbs import VERBS, actions
from edge_runtime.reasoning.engine import Engine
from edge_runtime.reasoning.facts import FactType, fact_types
from edge_runtime.reasoning.language import parse
from edge_runtime.reasoning.semantics import check

_PAGE = (Path(__file__).resolve().parents[2] / "docs" / "rules.md").read_text()
_BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", _PAGE, re.MULTILINE | re.DOTALL)
_CONDITIONS = [line for kind, block in _BLOCKS if kind == "rule" for line in block.splitlines()]

FACTS = {
    "temp": FactType("number", "degC"),
    "oil": FactType("number", "degF"),
    "flow": FactType("number", "l/min"),
    "pressure": FactType("number", "bar"),
    "maintenance": FactType("flag"),
    "bearing": FactType("label", labels=("normal", "outer_race")),
    "bearing.score": FactType("number"),
}


@pytest.mark.parametrize("text", _CONDITIONS)
def test_a_documented_condition_holds_water(text: str) -> None:
    check(parse(text), FACTS)


@pytest.mark.parametrize("text", [block for kind, block in _BLOCKS if kind == "yaml"])
def test_a_documented_deployment_loads(text: str) -> None:
    deployment = msgspec.yaml.decode(text, type=Deployment)
    Engine(deployment.rules, fact_types(deployment, {}), revision="1", boot="b")
    for rule in deployment.rules:
        assert all(actuator in deployment.actuators for actuator, _ in actions(rule.then))


def test_every_verb_is_documented() -> None:
    for verb, state in VERBS.items():
        assert f"`{verb}` | `{state}`" in _PAGE
