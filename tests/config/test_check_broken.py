"""Every mistake in a document is named with file:line:key, what was expected, what came and what to do; all of them in one go."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.cli.main import main
from edge_runtime.config.check import check_file
from edge_runtime.config.load import parse_deployment, parse_gateway
from edge_runtime.errors import ConfigError
from models.store import ModelStore
from models.zoo import path as zoo_path

BROKEN = Path(__file__).parent / "broken"
DEMO = Path(__file__).resolve().parents[2] / "edge_runtime/demo/deployment.yaml"

EXPECTED = {
    "bare_off.yaml": ['3:actuators.lamp.safe_state: expected text, got `false`; YAML reads a bare off as false: write "off" in quotes'],
    "duplicate_key.yaml": ["4:sensors.temp: this key is here twice (first on line 3)"],
    "future.yaml": ["1:schema: expected `1`, got `2`"],
    "gateway_bindings.yaml": ["2:gateway.id: expected a name of letters", "8:broker.port: expected a whole number >= 1 and <= 65535"],
    "gateway_values.yaml": [
        "4:adapters.plant.driver: `simulatd` is not a known adapter; did you mean `simulated`?",
        "5:adapters.pump.options: pump.options.pannel: unknown option; did you mean `panel`?",
        "7:sensors.temp.adapter: no adapter `plnt`; did you mean `plant`?",
        "7:sensors.temp.unit: unknown unit `bars`; did you mean `bar`?",
        "8:broker.tls: expected both `cert` and `key` or neither",
        "8:broker.tls.ca: file",
        "8:broker.tls.cert: file",
        "3:sensors.vibration.rate: unknown key `rate`; did you mean `rate_hz`?",
    ],
    "hostile_model.yaml": ["5:models.m.path: probe_crashed: recursive.tflite kills the process that runs it"],
    "impossible_rate.yaml": ["3:sensors.temp.rate_hz: expected a number > 0"],
    "infinite.yaml": [
        "3:sensors.temp.rate_hz: expected a finite decimal number, got `.inf`",
        "3:sensors.temp.minimum: expected a finite decimal number, got `.nan`",
    ],
    "laughs.yaml": ["2:(document): more than 100000 values"],
    "missing_model.yaml": [
        "4:models.bearing.path: missing:",
        "5:models.other.path: missing: no model `berring` in the zoo (known: bearing",
    ],
    "not_a_mapping.yaml": ["1:(document): expected a mapping with the keys schema"],
    "rule_errors.yaml": [
        "4:rules[0].when: column 8: cannot compare: unit `bar` is pressure, expected temperature",
        "5:rules[1].when: column 7: expected a fact, a number",
        "6:rules[2].when: column 1: expected a fact of the deployment, came `tmp`; did you mean `temp`?",
        "6:rules[2].then: then: unknown verb `shut`",
        "7:rules[3].rule: the name `a` is taken by rules[0]; rename one of them",
        "7:rules[3].then: no actuator `valv`; did you mean `valve`?",
        "8:actuators.valve.safe_state: no state `shut`; known: open, closed",
    ],
    "tab.yaml": ["3:(document): not valid YAML"],
    "unknown_key.yaml": ["3:sensors.vibration.rate: unknown key `rate`; did you mean `rate_hz`?"],
    "unknown_sensor.yaml": [
        "4:pipelines.p.input[0]: no sensor `vibrations`; did you mean `vibration`?",
        "4:pipelines.p.window.hop: expected at most size 64, got 128",
        "4:pipelines.p.preprocess: unknown preprocessing step `standardise`; did you mean `standardize`?",
    ],
    "waiting_trigger.yaml": ["9:pipelines.level.trigger.when: expected a condition without `for`, which only rules can wait for"],
    "window_too_long.yaml": ["5:pipelines.p.window.size: this window takes 10240 s to fill"],
    "wrong_json.json": ["3:sensors.temp.rate_hz: expected a number > 0 and <= 1e+06, got `fast`"],
    "wrong_shape.yaml": [
        "10:pipelines.bearing.preprocess: the model was trained with [standardize]",
        "7:pipelines.bearing.window.size: wrong_shape: the pipeline gives [1, 1000], the model's input",
    ],
    "wrong_provider.yaml": ["4:models.bearing.providers: `NowhereExecutionProvider` is no execution provider of this onnxruntime (it has:"],
    "wrong_unit.yaml": ["3:sensors.temp.unit: unknown unit `degc`; did you mean `degC`?"],
}


def test_every_broken_document_is_in_the_table() -> None:
    assert sorted(path.name for path in BROKEN.iterdir()) == sorted(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_each_problem_is_named_with_its_place_and_remedy(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(BROKEN / name)]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert captured.out == ""
    assert len(lines) == len(EXPECTED[name]), lines
    for expected in EXPECTED[name]:
        assert any(f":{expected}" in line for line in lines), (expected, lines)


def test_tabs_are_called_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", str(BROKEN / "tab.yaml")])
    assert "indent with spaces, not tabs" in capsys.readouterr().err


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--json", str(BROKEN / "rule_errors.yaml"), str(DEMO)]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert {problem["line"] for problem in document["problems"]} == {4, 5, 6, 7, 8}


def test_a_sound_deployment_passes_and_an_unbound_one_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(DEMO)]) == 0
    gateway = tmp_path / "gateway.yaml"
    gateway.write_text("schema: 1\ngateway: {id: g}\nadapters: {plant: {driver: simulated}}\n")
    assert main(["check", str(DEMO), "--gateway", str(gateway)]) == 2
    assert "the gateway file binds no channel to `vibration`" in capsys.readouterr().err


def test_a_model_by_digest_is_looked_for_in_the_store_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "models"
    digest = ModelStore(store).install(zoo_path("bearing").parent).digest
    document = tmp_path / "deployment.yaml"
    document.write_text(DEMO.read_text().replace('path: "zoo:bearing"', f'digest: "{digest}"'))
    assert main(["check", str(document), "--models", str(store)]) == 0
    assert capsys.readouterr().err == ""
    assert main(["check", str(document)]) == 0
    assert "rules on its results not at all (warning)" in capsys.readouterr().err
    document.write_text(document.read_text().replace("size: 1024", "size: 1000").replace("close: valve}", "close: vlave}"))
    assert main(["check", str(document), "--models", str(store)]) == 2
    err = capsys.readouterr().err
    assert "pipelines.bearing.window.size: wrong_shape: the pipeline gives [1, 1000]" in err
    assert "no actuator `vlave`; did you mean `valve`?" in err


def test_sensors_that_are_not_what_the_model_was_made_for_are_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "deployment.yaml"
    document.write_text(DEMO.read_text().replace("{unit: m/s2, rate_hz: 1600}", "{unit: g, rate_hz: 800}"))
    assert main(["check", str(document)]) == 0
    err = capsys.readouterr().err
    assert "input[0]: the model was made for m/s2, `vibration` comes in g; set sensors.vibration.unit: m/s2 (warning)" in err
    assert "input: the model was made for 1600 Hz, `vibration` comes at 800 Hz (warning)" in err


def test_a_file_that_is_not_there_is_a_problem_like_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "nowhere.yaml"]) == 2
    assert "nowhere.yaml:1:(document): cannot be read: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gateway", "deployment"])
def test_the_schema_is_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--schema", name]) == 0
    assert json.loads(capsys.readouterr().out)["$schema"].startswith("https://json-schema.org/")


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for parse in (parse_deployment, parse_gateway):
        with contextlib.suppress(ConfigError):
            parse(data, "x.yaml")


_words = st.sampled_from(
    ["schema", "sensors", "rules", "temp", "unit", "degC", "1", "-1", ".inf", "on", "null", "a b", "&a", "*a", "!!x", "'"]
)
_yaml = st.recursive(
    _words,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: "[" + ", ".join(items) + "]")
        | st.lists(st.tuples(_words, inner), max_size=3).map(lambda pairs: "{" + ", ".join(f"{k}: {v}" for k, v in pairs) + "}")
    ),
    max_leaves=12,
)


@given(_yaml)
def test_any_yaml_is_read_or_refused(text: str) -> None:
    for parse in (parse_deployment, parse_gateway):
        with contextlib.suppress(ConfigError):
            parse(f"schema: 1\nsensors: {text}\nrules: {text}\n".encode(), "x.yaml")


@pytest.mark.parametrize("unit", ["[", "{a: ", "- "])
def test_deep_nesting_ends_early(unit: str, tmp_path: Path) -> None:
    deep = tmp_path / "deep.yaml"
    deep.write_text("schema: 1\nsensors:\n  " + unit * 150_000)
    (problem,) = check_file(deep)
    assert "more than 32 levels" in problem.message
