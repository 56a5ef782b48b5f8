"""Models with a state or several inputs, real ones: what is carried from run to run, what ends it, and what does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.bundle import Manifest, Port, parse_manifest, write_manifest
from edge_runtime.errors import ModelRefused, RefusalReason
from edge_runtime.pipeline.preprocess import parse_steps
from edge_runtime.pipeline.rows import Joined, compose
from edge_runtime.pipeline.runner import Binding, ModelHandle, Runner
from edge_runtime.pipeline.windows import Snapshot
from edge_runtime.ports import LoadedModel
from edge_runtime.recurrence import Recurrent
from edge_runtime.types import Array, Inference, Quality, TensorInfo, Timestamp

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from models.onnx import OnnxBackend
from models.qdq import Graph

HIDDEN, WIDTH = 3, 2
RNG = np.random.default_rng(5)
W = RNG.normal(size=(1, 4 * HIDDEN, WIDTH)).astype(np.float32)
R = RNG.normal(size=(1, 4 * HIDDEN, HIDDEN)).astype(np.float32)
STATE = {"h_out": "h_in", "c_out": "c_in"}


def lstm_cell(folder: Path, name: str = "cell.onnx") -> Path:
    """One step of an LSTM: x [1, 2] with the states h and c [1, 1, 3] in and out, y [1, 3] the new h."""
    graph = Graph("cell", int8=False)
    x, h, c = graph.input("x", [1, WIDTH]), graph.input("h_in", [1, 1, HIDDEN]), graph.input("c_in", [1, 1, HIDDEN])
    sequence = graph.op("Reshape", x, graph.constant([1, 1, WIDTH], np.int64))
    nodes = graph._nodes
    nodes.append(
        graph._onnx.helper.make_node(
            "LSTM", [sequence, graph.constant(W), graph.constant(R), "", "", h, c], ["y_all", "h_new", "c_new"], hidden_size=HIDDEN
        )
    )
    graph.output(graph.op("Reshape", "h_new", graph.constant([1, HIDDEN], np.int64)), "y", [1, HIDDEN])
    graph.output("h_new", "h_out", [1, 1, HIDDEN])
    graph.output("c_new", "c_out", [1, 1, HIDDEN])
    graph.save(folder / name)
    return folder / name


def two_inputs(folder: Path) -> Path:
    """y = sum of a [1, 2, 4] plus 100 times the sum of b [1, 4], with the running count `n` as a state."""
    graph = Graph("two", int8=False)
    a, b, n = graph.input("a", [1, 2, 4]), graph.input("b", [1, 4]), graph.input("n", [1])
    axes = [graph.op("ReduceSum", value, keepdims=0) for value in (a, b)]
    total = graph.op("Add", axes[0], graph.op("Mul", axes[1], graph.constant(100.0)))
    count = graph.op("Add", n, graph.constant([1.0]))
    graph.output(
        graph.op("Add", graph.op("Reshape", total, graph.constant([1], np.int64)), graph.op("Mul", count, graph.constant([0.5]))), "y", [1]
    )
    graph.output(count, "n_next", [1])
    graph.save(folder / "two.onnx")
    return folder / "two.onnx"


def ports(infos: Sequence[TensorInfo], channels: Mapping[str, tuple[str, ...]] = {}) -> tuple[Port, ...]:
    return tuple(Port(name=i.name, shape=i.shape, dtype=i.dtype, channels=channels.get(i.name, ())) for i in infos)


def manifest(path: Path, model: LoadedModel, **fields: Any) -> Manifest:
    """A bundle's manifest, written beside the graph."""
    known: dict[str, Any] = {"inputs": ports(model.inputs), "outputs": ports(model.outputs), **fields}
    made = Manifest(schema=1, name="m", version=1, model=path.name, files={}, license="none", **known)
    return write_manifest(path.parent, made, [path.name]).manifest


def reference(rows: Array) -> list[Array]:
    """Hidden states of the LSTM by its equations (gates in ONNX's order i, o, f, c)."""
    h = c = np.zeros(HIDDEN)
    found = []
    for x in rows.astype(np.float64):
        i, o, f, g = np.split(W[0] @ x + R[0] @ h, 4)
        i, o, f = (1 / (1 + np.exp(-gate)) for gate in (i, o, f))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
        found.append(h)
    return found


def snapshot(data: Array, end: int) -> Snapshot:
    return Snapshot(data, end, end, 0, Timestamp(end, end, 0), Quality.GOOD, end)


def bind(model: LoadedModel, shape: tuple[int, int], hop: int, runner: Runner | None = None) -> Binding:
    made = runner or Runner(model)
    binding = Binding("p", ModelHandle("m", "sha256:0", (), model), parse_steps([]), shape, made, hop=hop)
    made.warm_up(binding.fit.tensor)
    return binding


def infer(binding: Binding, data: Array, end: int) -> tuple[float, ...]:
    result: Inference = binding.infer(snapshot(data, end), lambda: 0)
    return result.values


ROWS = np.random.default_rng(6).normal(size=(6, WIDTH)).astype(np.float32)


@pytest.fixture
def cell(tmp_path: Path) -> Recurrent:
    return Recurrent(OnnxBackend().load(lstm_cell(tmp_path)), STATE)


def test_the_state_is_no_input_and_no_output_of_the_outside(cell: Recurrent) -> None:
    assert [info.name for info in cell.inputs] == ["x"]
    assert [info.name for info in cell.outputs] == ["y"]


def test_a_sequence_runs_as_the_equations_say_and_begins_anew_after_a_reset(cell: Recurrent) -> None:
    stream = cell.stream()
    for _ in range(2):
        got = [stream.run([row[np.newaxis]])[0].ravel() for row in ROWS]
        np.testing.assert_allclose(got, reference(ROWS), atol=1e-6)
        stream.reset()


def test_streams_do_not_see_each_other_and_run_alone_starts_from_zero(cell: Recurrent) -> None:
    first, second = cell.stream(), cell.stream()
    for row, expected in zip(ROWS, reference(ROWS), strict=True):
        np.testing.assert_allclose(first.run([row[np.newaxis]])[0].ravel(), expected, atol=1e-6)
        np.testing.assert_allclose(second.run([row[np.newaxis]])[0].ravel(), expected, atol=1e-6)
        np.testing.assert_allclose(cell.run([row[np.newaxis]])[0].ravel(), reference(row[np.newaxis])[0], atol=1e-6)


def test_a_pipeline_carries_the_state_from_window_to_window(cell: Recurrent) -> None:
    binding = bind(cell, (1, WIDTH), WIDTH)
    got = [infer(binding, row[np.newaxis], WIDTH * (at + 1)) for at, row in enumerate(ROWS)]
    np.testing.assert_allclose(got, reference(ROWS), atol=1e-6)


@pytest.mark.parametrize(
    "ends", [(2, 4, 8, 10), (2, 4, 2, 4), (2, 4, 5, 7)], ids=["a window passed over", "the window was lost", "off the hop"]
)
def test_a_window_that_does_not_follow_starts_a_new_sequence(cell: Recurrent, ends: tuple[int, ...]) -> None:
    binding = bind(cell, (1, WIDTH), WIDTH)
    got = [infer(binding, row[np.newaxis], end) for row, end in zip(ROWS[:4], ends, strict=True)]
    np.testing.assert_allclose(got, [*reference(ROWS[:2]), *reference(ROWS[2:4])], atol=1e-6)


def test_a_window_that_fails_ends_the_sequence(cell: Recurrent) -> None:
    binding = bind(cell, (1, WIDTH), WIDTH)
    infer(binding, ROWS[:1], 2)
    with pytest.raises(ValueError, match="NaN or infinity after preprocessing"):
        infer(binding, np.full((1, WIDTH), np.nan, np.float32), 4)
    np.testing.assert_allclose(infer(binding, ROWS[1:2], 6), reference(ROWS[1:2])[0], atol=1e-6)


def test_two_pipelines_on_one_model_have_a_state_each(cell: Recurrent) -> None:
    runner = Runner(cell)
    first, second = bind(cell, (1, WIDTH), WIDTH, runner), bind(cell, (1, WIDTH), WIDTH, runner)
    for at, (row, expected) in enumerate(zip(ROWS, reference(ROWS), strict=True)):
        np.testing.assert_allclose(infer(first, row[np.newaxis], 2 * at + 2), expected, atol=1e-6)
        np.testing.assert_allclose(infer(second, row[np.newaxis], 2 * at + 2), expected, atol=1e-6)


def test_a_state_that_is_no_number_is_said_and_forgotten(tmp_path: Path) -> None:
    graph = Graph("grows", int8=False)
    x, s = graph.input("x", [1]), graph.input("s", [1])
    grown = graph.op("Add", graph.op("Mul", s, graph.constant([1e30])), x)
    graph.output(graph.op("Mul", x, graph.constant([2.0])), "y", [1])
    graph.output(grown, "s_next", [1])
    graph.save(tmp_path / "grows.onnx")
    stream = Recurrent(OnnxBackend().load(tmp_path / "grows.onnx"), {"s_next": "s"}).stream()
    one = np.ones(1, np.float32)
    stream.run([one])
    stream.run([one])
    with pytest.raises(ModelRefused, match="state `s_next` is NaN or infinite"):
        stream.run([one])
    assert stream.run([one])[0] == 2


def test_each_input_takes_its_rows_of_the_window(tmp_path: Path) -> None:
    path = two_inputs(tmp_path)
    model = OnnxBackend().load(path)
    channels = {"a": ("left", "right"), "b": ("speed",)}
    composed = compose(model, manifest(path, model, inputs=ports(model.inputs, channels), state={"n_next": "n"}))
    binding = bind(composed, (3, 4), 4)
    window = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert infer(binding, window, 4) == (28 + 3800 + 0.5,)
    assert infer(binding, window, 8) == (28 + 3800 + 1.0,)
    assert infer(binding, window, 40) == (28 + 3800 + 0.5,)


def test_what_cannot_be_joined_names_the_shapes(tmp_path: Path) -> None:
    model = Recurrent(OnnxBackend().load(two_inputs(tmp_path)), {"n_next": "n"})
    with pytest.raises(ModelRefused, match=r"a \[1, 2, 4\], b \[1, 4\]; correct `channels`"):
        Joined(model, [1, 1])


def test_a_model_of_several_inputs_without_a_manifest_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=r"has 3: x, h_in, c_in; its bundle's manifest can say"):
        Runner(OnnxBackend().load(lstm_cell(tmp_path)))


@pytest.mark.parametrize(
    ("state", "message", "reason"),
    [
        ({"h_out": "nothing"}, r"no input `nothing` \(it has: x, h_in, c_in\)", RefusalReason.WRONG_SHAPE),
        ({"nothing": "h_in"}, "no output `nothing`", RefusalReason.WRONG_SHAPE),
        ({"y": "h_in"}, r"output `y` has shape \[1, 3\], input `h_in` takes \[1, 1, 3\]", RefusalReason.WRONG_SHAPE),
    ],
)
def test_a_state_that_the_graph_does_not_have_is_refused(
    tmp_path: Path, state: dict[str, str], message: str, reason: RefusalReason
) -> None:
    with pytest.raises(ModelRefused, match=message) as refusal:
        Recurrent(OnnxBackend().load(lstm_cell(tmp_path)), state)
    assert refusal.value.reason is reason


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"h_out": "h_in", "y": "h_in"}, "an input of its own for each output"),
        ({"h_out": "h_in", "c_out": "c_in", "y": "x"}, "one more for data"),
        ({"z": "h_in"}, "state: `z` is no output"),
        ({"y": "z"}, "state: `z` is no output, or no input"),
    ],
)
def test_a_state_that_the_manifest_does_not_list_is_refused(tmp_path: Path, state: dict[str, str], message: str) -> None:
    path = lstm_cell(tmp_path)
    with pytest.raises(ModelRefused, match=message):
        manifest(path, OnnxBackend().load(path), state=state)


def test_a_manifest_keeps_its_state(tmp_path: Path) -> None:
    path = lstm_cell(tmp_path)
    assert manifest(path, OnnxBackend().load(path), state=STATE).state == STATE
    assert parse_manifest((tmp_path / "manifest.json").read_bytes(), "m").state == STATE
