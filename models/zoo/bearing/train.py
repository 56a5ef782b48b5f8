"""Recipe: trains the bearing classifier on the simulated pump, quantizes it to INT8 and writes model, manifest and figures.

`python -m models.zoo.bearing.train --out DIR` (extra `train`: torch). One thread and fixed seeds: the same machine type gives the
same weights. The graph is written with onnx.helper from the trained weights, so that no exporter stands in between.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.bundle import Bundle, Golden, Manifest, Port, Window, write_manifest
from edge_runtime.types import FloatArray
from models.golden import NAME as GOLDEN
from models.golden import record
from models.onnx import OnnxBackend
from models.zoo.bearing.data import HOP, LABELS, RATE_HZ, WINDOW, dataset

SEEDS = {"train": 11, "validation": 23, "test": 37}
RUNS = {"train": 480, "validation": 120, "test": 160}
EPOCHS = 8
BATCH = 64
CHANNELS = ((1, 12, 16, 4), (12, 20, 8, 2), (20, 28, 5, 2), (28, 32, 3, 2))  # in, out, kernel, stride
OPSET = 17
NAME = "bearing-int8.onnx"


def main(argv: list[str] | None = None) -> int:
    """The whole recipe; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m models.zoo.bearing.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its manifest")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    data = {part: dataset(SEEDS[part], RUNS[part]) for part in SEEDS}
    _say(", ".join(f"{part} {len(y)} windows" for part, (_, y) in data.items()))
    weights = train(*data["train"], *data["validation"])
    float_path, int8_path = args.out / "bearing-float.onnx", args.out / NAME
    write_graph(weights, float_path)
    quantize(float_path, int8_path, data["train"][0][::29])
    made = bundle(args.out, float_path, *data["test"])
    sys.stdout.write(json.dumps(made.manifest.measured, indent=2) + "\n")
    return 0


def train(x: FloatArray, y: Any, x_check: FloatArray, y_check: Any) -> dict[str, FloatArray]:
    """Trains by Adam with a cosine schedule; keeps the epoch that validates best. Returns the weights by name."""
    import torch

    torch.manual_seed(5)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    net = _network(torch)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.02)
    inputs, targets = torch.from_numpy(x[:, 0]), torch.from_numpy(y)
    order = np.random.default_rng(3)
    best, kept = -1.0, {}
    for epoch in range(EPOCHS):
        net.train()
        for batch in np.array_split(order.permutation(len(y)), len(y) // BATCH):
            optimizer.zero_grad()
            loss = loss_of(net(inputs[batch]), targets[batch])
            loss.backward()
            optimizer.step()
        schedule.step()
        net.eval()
        with torch.no_grad():
            accuracy = float((net(torch.from_numpy(x_check[:, 0])).argmax(1).numpy() == y_check).mean())
        _say(f"epoch {epoch + 1:2d}/{EPOCHS}  validation {accuracy:.4f}")
        if accuracy > best:
            best, kept = accuracy, {name: value.numpy().copy() for name, value in net.state_dict().items()}
    return kept


def _network(torch: Any) -> Any:
    layers: list[Any] = []
    for inputs, outputs, kernel, stride in CHANNELS:
        layers += [torch.nn.Conv1d(inputs, outputs, kernel, stride), torch.nn.ReLU()]
    layers += [torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten(), torch.nn.Linear(CHANNELS[-1][1], len(LABELS))]
    return torch.nn.Sequential(*layers)


def write_graph(weights: dict[str, FloatArray], path: Path) -> None:
    """The network as plain ONNX: input float [1, 1, 1, WINDOW], output `probabilities` [1, classes]."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    nodes, tensors, last = [], [], "vibration"
    for index, (_, _, kernel, stride) in enumerate(CHANNELS):
        weight, bias = weights[f"{2 * index}.weight"][:, :, None, :], weights[f"{2 * index}.bias"]
        tensors += [numpy_helper.from_array(weight, f"w{index}"), numpy_helper.from_array(bias, f"b{index}")]
        nodes.append(
            helper.make_node("Conv", [last, f"w{index}", f"b{index}"], [f"c{index}"], kernel_shape=[1, kernel], strides=[1, stride])
        )
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        last = f"r{index}"
    head = f"{2 * len(CHANNELS) + 2}"
    tensors += [numpy_helper.from_array(weights[f"{head}.weight"], "w"), numpy_helper.from_array(weights[f"{head}.bias"], "b")]
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "w", "b"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "bearing",
        [helper.make_tensor_value_info("vibration", TensorProto.FLOAT, [1, 1, 1, WINDOW])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, len(LABELS)])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="edge-runtime zoo")
    model.ir_version = 9
    checker.check_model(model)
    save(model, str(path))


def quantize(source: Path, target: Path, calibration: FloatArray) -> None:
    """Static INT8: activations uint8, weights int8 per channel, QDQ form; calibrated on the extremes of `calibration`."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped library
        def __init__(self) -> None:
            self._rows = iter(calibration)

        def get_next(self) -> dict[str, FloatArray] | None:
            row = next(self._rows, None)
            return None if row is None else {"vibration": row[None]}

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(target),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        calibrate_method=CalibrationMethod.MinMax,
        op_types_to_quantize=["Conv", "Relu", "Gemm", "GlobalAveragePool"],
    )
    prepared.unlink()


def bundle(out: Path, float_path: Path, x: FloatArray, y: Any) -> Bundle:
    """Golden runs and the manifest, with what was measured on data never trained on."""
    backend = OnnxBackend()
    model = backend.load(out / NAME)
    record(model, [[row[None]] for row in x[:: len(x) // 8]], out / GOLDEN)
    guesses = {"float": predict(float_path, x), "int8": predict(out / NAME, x)}
    manifest = Manifest(
        schema=1,
        name="bearing",
        version=2,
        task="classifier",
        model=NAME,
        files={},
        inputs=(Port(name="vibration", shape=(1, 1, 1, WINDOW), dtype="float32", unit="m/s2", rate_hz=RATE_HZ, kind="signal"),),
        outputs=(Port(name="probabilities", shape=(1, len(LABELS)), dtype="float32"),),
        labels=LABELS,
        window=Window(WINDOW, HOP),
        preprocess=("standardize",),
        golden=Golden(file=GOLDEN, tolerance=0.05),
        precision="int8 (QDQ, uint8 activations, int8 weights per channel)",
        license="Apache-2.0",
        provenance={"recipe": "models/zoo/bearing/train.py", "data": "adapter `simulated`", "seeds": SEEDS},
        measured=measure(guesses, y),
    )
    return write_manifest(out, manifest, [NAME, GOLDEN])


def measure(guesses: dict[str, Any], y: Any) -> dict[str, Any]:
    """Accuracy, agreement of INT8 with float, false alarms, and the confusion of INT8 (rows: true, columns: guessed)."""
    int8 = guesses["int8"]
    return {
        "test_windows": len(y),
        "accuracy": {name: round(float((guess == y).mean()), 4) for name, guess in guesses.items()},
        "agreement": round(float((guesses["float"] == int8).mean()), 4),
        "false_alarm_rate": round(float((int8[y == 0] != 0).mean()), 5),
        "confusion_int8": [[int(((y == a) & (int8 == b)).sum()) for b in range(len(LABELS))] for a in range(len(LABELS))],
    }


def predict(path: Path, x: FloatArray) -> Any:
    """The class of every window, by onnxruntime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.array([session.run(["probabilities"], {"vibration": row[None]})[0][0].argmax() for row in x])


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
