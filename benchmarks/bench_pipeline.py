"""What the pipeline adds to a bare model: window, guard, class, event. Beside `session.run`, interleaved in the same run.

In every turn each rung of the ladder is timed once, in random order, so that a busy moment of the machine falls on all alike.
The overhead is the median (and p99) of the differences within a turn. Of five rounds the quietest is reported, the one with the
lowest median of the bare model (of the call itself where there is none), and `spread_p50` holds the lowest and highest median of all five.

    python -m benchmarks.bench_pipeline
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import row
from edge_runtime.bus import Bus
from edge_runtime.clock import SystemClock
from edge_runtime.config.deployment import PipelineSpec, SensorSpec, WindowSpec
from edge_runtime.pipeline.flow import Flow, ModelHandle
from edge_runtime.pipeline.runner import Binding, Runner
from edge_runtime.pipeline.windows import ChannelTiming, Snapshot, Window
from edge_runtime.types import Inference, Quality, Reading, Timestamp
from models.onnx import OnnxBackend

SIZE, BLOCK, RATE_HZ = 1024, 64, 1600.0
ROUNDS, TURNS = 5, 1500
LABELS = ("normal", "inner", "outer", "ball")


def run() -> dict[str, Any]:
    """Rows in microseconds, beside the bare session in the same turns; takes about 30 s."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.onnx"
        build_model(path)
        ladder, windows, features = bench_ladder(path), bench_windows(), bench_features()
    inline, handler = ladder["inline"], ladder["whole_handler"]
    bare = inline["session_run"]["p50"]
    rows = [
        row("bare session.run of a small CNN", bare, "us"),
        row("our backend's run", inline["model_run"]["p50"], "us", bare),
        row("inline overhead over it: guard, class, time", inline["binding_infer_minus_model_run"]["p50"], "us", None, "<= 5"),
        row("block on the bus -> inference event, minus the model", handler["reading_to_inference_minus_model_run"]["p50"], "us"),
        row("the same, p99", handler["reading_to_inference_minus_model_run"]["p99"], "us"),
        row("block on the bus -> features, no model", features["reading_to_features"]["p50"], "us", None, "<= 70"),
        row("push of a scalar", windows["push_scalar"], "us"),
        row("push of a block of 64", windows["push_block_64"], "us"),
    ]
    return {"rows": rows, "window_us": windows, "ladder_us": ladder}


def bench_windows() -> dict[str, float]:
    """Mean cost of one push, windows cut but not used; best of five."""
    block = np.random.default_rng(0).standard_normal(BLOCK).astype(np.float32)
    at = Timestamp(0, 0, 0)

    def readings(count: int, blocks: bool, channels: int) -> list[tuple[int, Reading]]:
        step_ns = int(1e9 / RATE_HZ) * (BLOCK if blocks else 1)
        value, data = (None, block) if blocks else (1.0, None)
        return [
            (channel, Reading("rig", "c", seq, at, value, "", Quality.GOOD, data, RATE_HZ, seq * step_ns))
            for seq in range(count)
            for channel in range(channels)
        ]

    def cost(blocks: bool, channels: int) -> float:
        fed = readings(4000, blocks, channels)
        best = float("inf")
        for _ in range(5):
            window = Window([ChannelTiming(RATE_HZ, 1.0)] * channels, SIZE, SIZE // 2, lambda w: None, lambda *lost: None)
            begun = time.perf_counter_ns()
            for channel, reading in fed:
                window.push(channel, reading)
            best = min(best, (time.perf_counter_ns() - begun) / len(fed) / 1e3)
        return round(best, 3)

    return {
        "push_scalar": cost(False, 1),
        "push_block_64": cost(True, 1),
        "push_scalar_of_3_channels": cost(False, 3),
        "push_block_64_of_3_channels": cost(True, 3),
    }


def bench_ladder(path: Path) -> dict[str, Any]:
    """From the bare session to a reading on the bus, one rung after the other."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names, feed = [session.get_outputs()[0].name], session.get_inputs()[0].name
    model = OnnxBackend().load(path)
    noise = np.random.default_rng(1)
    tensor = noise.standard_normal((1, 1, SIZE)).astype(np.float32)
    other = tensor.copy()
    window = Snapshot(tensor[0], 0, 1, 0, Timestamp(0, 0, 0), Quality.GOOD)
    handle = ModelHandle("bearing", "sha256:0", LABELS, model)
    runner = Runner(model)
    binding = Binding("bearing", handle, (), (1, SIZE), runner)
    runner.warm_up(binding.fit.tensor)
    clock = SystemClock()
    publish, inferred = _flow(clock, handle, ())
    standardized, _ = _flow(clock, handle, ("standardize",))
    bare: dict[str, Callable[[], object]] = {
        "session_run": lambda: session.run(names, {feed: tensor}),
        "model_run": lambda: model.run([other]),
        "binding_infer": lambda: binding.infer(window, clock.monotonic_ns),
    }
    whole = {"model_run": bare["model_run"], "reading_to_inference": publish, "reading_to_inference_standardized": standardized}
    result = {"inline": _report(bare, over="model_run"), "whole_handler": _report(whole, over="model_run")}
    assert inferred()
    return result


def bench_features() -> dict[str, Any]:
    """A 64-sample block on the bus to features of 1024 samples, in one call."""
    publish, _ = _flow(SystemClock(), None, ())
    return _report({"reading_to_features": publish})


def _flow(clock: SystemClock, handle: ModelHandle | None, steps: Sequence[str]) -> tuple[Callable[[], None], Callable[[], int]]:
    bus = Bus()
    flow = Flow(bus, clock, on_drop=lambda reason, count: None, inline_limit_ms=1000)
    bus.subscribe(Inference, lambda event: None)
    spec = PipelineSpec(
        input=("vib",), window=WindowSpec(size=SIZE, hop=BLOCK), model=handle and handle.name, output="o", preprocess=tuple(steps)
    )
    flow.configure({"vib": SensorSpec(rate_hz=RATE_HZ)}, {"bearing": spec}, {handle.name: handle} if handle else {})
    block = np.random.default_rng(2).standard_normal(BLOCK).astype(np.float32)
    state = {"seq": 0}
    step_ns = int(BLOCK * 1e9 / RATE_HZ)

    def publish() -> None:
        state["seq"] = seq = state["seq"] + 1
        bus.publish(Reading("rig", "vib", seq, clock.now(), None, "m/s2", Quality.GOOD, block, RATE_HZ, seq * step_ns))

    for _ in range(SIZE // BLOCK):
        publish()
    return publish, lambda: flow.counters.inferences


def _report(rungs: dict[str, Callable[[], object]], over: str | None = None) -> dict[str, Any]:
    """The quietest round, and the lowest and highest median of all rounds; with `over`, also the overhead over that rung."""
    rounds = [_interleaved(rungs) for _ in range(ROUNDS)]
    for times in rounds:
        if over is not None:
            times.update({f"{name}_minus_{over}": times[name] - times[over] for name in rungs if name not in (over, "session_run")})
    quietest = min(rounds, key=lambda times: float(np.median(times[over or next(iter(rungs))])))
    spread = {name: sorted(round(float(np.median(times[name])), 2) for times in rounds) for name in quietest}
    return {name: {**_percentiles(quietest[name]), "spread_p50": [medians[0], medians[-1]]} for name, medians in spread.items()}


def _interleaved(rungs: dict[str, Callable[[], object]]) -> dict[str, Any]:
    times: dict[str, list[int]] = {name: [] for name in rungs}
    order = list(rungs.items())
    shuffle = random.Random(0).shuffle
    for _ in range(TURNS):
        shuffle(order)
        for name, call in order:
            begun = time.perf_counter_ns()
            call()
            times[name].append(time.perf_counter_ns() - begun)
    return {name: np.array(taken[TURNS // 10 :]) / 1e3 for name, taken in times.items()}


def _percentiles(values: Any) -> dict[str, float]:
    return {"p50": round(float(np.percentile(values, 50)), 2), "p99": round(float(np.percentile(values, 99)), 2)}


def build_model(path: Path) -> None:
    """A 1-D convolution with four classes, random weights: 1x1x1024 float in, probabilities out."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    noise = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> Any:
        return numpy_helper.from_array((noise.standard_normal(shape) / 8).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], strides=[4]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "w2"], ["e"]),
        helper.make_node("Softmax", ["e"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [weights("w1", 8, 1, 16), weights("w2", 8, 4)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
