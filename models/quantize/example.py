"""A small network and its data to see the gate at work: `python -m models.quantize.example DIR` (extra `quantize`).

8x8 pictures of one of four bars in noise and a network of line detectors that tells them apart (97 %), written down rather than trained,
in three forms. `even.onnx` quantizes without loss. `skewed.onnx` has channels whose weights differ 300-fold, as folded normalization
leaves them: one scale per tensor ruins it, one per channel does not. `clipped.onnx` has channels whose activations differ 200-fold under
a common clip, where no choice of ranges helps and training in INT8 does.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edge_runtime.errors import InputError, MissingDependency
from edge_runtime.types import Array

CLASSES = ("horizontal", "vertical", "falling", "rising")
CALIBRATION, EVALUATION = 4000, 4000

_NOISE = 0.55
_SKEW, _SPREAD = 300.0, 200.0
_BOUND = 6.0


def write(folder: Path) -> None:
    """The three models, `calibration.npz` and `eval.npz`; the same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    network(folder / "even.onnx")
    network(folder / "skewed.onnx", first=_SKEW, depthwise=_SKEW)
    network(folder / "clipped.onnx", activations=_SPREAD)
    data(folder / "calibration.npz", CALIBRATION, 5)
    data(folder / "eval.npz", EVALUATION, 6)


def images(count: int, seed: int) -> tuple[Array, Array]:
    """Pictures [n, 1, 8, 8] and the class of each."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, len(CLASSES), count)
    x = rng.normal(0, _NOISE, (count, 1, 8, 8))
    for index, kind in enumerate(y):
        at = int(rng.integers(2, 6))
        if kind == 0:
            x[index, 0, at, :] += 1
        elif kind == 1:
            x[index, 0, :, at] += 1
        else:
            diagonal = np.eye(8, k=at - 3)
            x[index, 0] += diagonal if kind == 2 else diagonal[:, ::-1]
    return x.astype(np.float32), y


def data(path: Path, count: int, seed: int) -> Path:
    """Pictures `x` and classes `y` as a file."""
    x, y = images(count, seed)
    np.savez(path, x=x, y=y)
    return path


def network(path: Path, *, first: float = 1.0, depthwise: float = 1.0, activations: float = 1.0, opset: int = 17) -> Path:
    """A convolution, a clip, a depthwise convolution and a fitted head.

    `first`, `depthwise`: in that layer two channels that never fire have weights so many times larger. `activations`: the channels between
    the two differ so much in scale.
    """
    try:
        import onnx
        from onnx import helper, numpy_helper
    except ImportError as err:
        raise MissingDependency("onnx", "quantize") from err
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["a"], name="first"),
        helper.make_node("Clip", ["a", "low", "high"], ["b"], name="clip"),
        helper.make_node("Conv", ["b", "w1"], ["d"], name="depthwise", group=6),
        helper.make_node("GlobalMaxPool", ["d"], ["e"], name="strongest"),
        helper.make_node("Flatten", ["e"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w", "k"], ["y"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "bars",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", len(CLASSES)])],
        [
            numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name)
            for name, value in _values(first, depthwise, activations).items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def _values(first: float, depthwise: float, activations: float) -> dict[str, Array]:
    kernels, rng = _kernels(), np.random.default_rng(1)
    scales = np.geomspace(1, activations, 4)
    silent = rng.uniform(-first, first, (2, 1, 5, 5))
    head = _head(*_features(kernels))
    return {
        "w0": np.concatenate([kernels * scales[:, None, None, None], silent]),
        "b0": np.array([0, 0, 0, 0, -100 * first, -100 * first]),
        "low": np.array(0.0),
        "high": np.array(_BOUND * activations),
        "w1": np.append(1 / scales, [depthwise, depthwise])[:, None, None, None],
        "w": np.concatenate([head[:4], rng.normal(0, 0.1, (2, 4))]),
        "k": head[4],
    }


def _kernels() -> Array:
    kernels = np.zeros((4, 1, 5, 5), np.float32)
    kernels[0, 0, 2, :] = kernels[1, 0, :, 2] = 1
    kernels[2, 0], kernels[3, 0] = np.eye(5), np.eye(5)[:, ::-1]
    centred: Array = kernels - kernels.mean(axis=(2, 3), keepdims=True)
    return centred


def _features(kernels: Array) -> tuple[Array, Array]:
    """The strongest response of each kernel, and 1: [n, 5]; the classes [n]."""
    x, y = images(2000, 3)
    view: Array = np.lib.stride_tricks.sliding_window_view(x, (1, 1, 5, 5))[:, 0, :, :, 0, 0]
    strongest = np.maximum(np.einsum("nhwij,cij->nchw", view, kernels[:, 0]), 0).max(axis=(2, 3))
    return np.concatenate([strongest, np.ones((len(x), 1))], axis=1), y


def _head(features: Array, y: Array) -> Array:
    """Weights [5, 4] of a softmax regression."""
    weights, truth = np.zeros((5, 4)), np.eye(4)[y]
    for _ in range(400):
        shares = np.exp(features @ weights)
        weights -= 0.3 * features.T @ (shares / shares.sum(axis=1, keepdims=True) - truth) / len(y)
    return weights


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise InputError("expected one folder: python -m models.quantize.example DIR")
    write(Path(sys.argv[1]))
