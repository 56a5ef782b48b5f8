"""Recipe: the network of the node's factory model (`models.export_c.factory`) as an ONNX graph. Nothing is trained.

`python -m models.zoo.thermal.make --out DIR` (extra `quantize`). The same bytes every time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edge_runtime.bundle import Bundle, Manifest, Port, Window
from edge_runtime.types import Array
from models.export_c.factory import HOT_CELSIUS, LABELS, RISE_CELSIUS, WINDOW, network
from models.export_c.network import Layer, Tensor
from models.qdq import OPSET, Graph
from models.zoo import recipe

NAME = "thermal-int8.onnx"

_KINDS = {"resting": (21, 21), "warming": (21, 40), "cooling": (70, 22), "hot": (80, 80), "heating": (55, 66), "frost": (-40, -30)}


def main(argv: list[str] | None = None) -> int:
    """The whole recipe; returns the exit code."""
    parser = recipe.parser("thermal", __doc__, "takes none")
    args = parser.parse_args(argv)
    recipe.tell(make(args.out, timed=args.time))
    return 0


def make(out: Path, *, timed: bool = False) -> Bundle:
    """Writes the bundle `out`; its golden runs are one window of every kind of day."""
    out.mkdir(parents=True, exist_ok=True)
    graph().save(out / NAME)
    golden = [np.linspace(first, last, WINDOW, dtype=np.float32)[None] for first, last in _KINDS.values()]
    return recipe.seal(out, _manifest(), golden, tolerance=0.004, timed=timed)


def graph() -> Graph:
    """`temperatures` [1, 16] in degrees in, `shares` [1, 3] out. The strided convolution of one channel is written as a product."""
    mean, decide, share = network().layers
    g = Graph("thermal", int8=True, target="mcu")
    x = _stored(g, g.input("temperatures", [1, WINDOW]), mean.inputs[0])
    x = _stored(
        g, _product(g, x, mean, np.kron(np.eye(mean.output.shape.count, dtype=np.int8), np.ravel(_given(mean.weights)))), mean.output
    )
    x = _stored(g, _product(g, x, decide, np.reshape(_given(decide.weights), (len(LABELS), -1))), decide.output)
    g.output(_stored(g, g.op("Softmax", x, axis=1), share.output), "shares", [1, len(LABELS)])
    return g


def _stored(g: Graph, x: str, like: Tensor) -> str:
    parameters = g.constant(float(like.scale)), g.constant(like.zero, np.int8)
    return g.op("DequantizeLinear", g.op("QuantizeLinear", x, *parameters), *parameters)


def _product(g: Graph, x: str, layer: Layer, weights: Array) -> str:
    """x W^T + b with `weights` [out, in] in int8 and the layer's bias, one for all outputs or one each, in the scale of the products."""
    scale, bias = float(_given(layer.weight_scales)[0]), np.broadcast_to(_given(layer.bias), len(weights)).astype(np.int32)
    return g.op("Gemm", x, _constant(g, weights, scale), _constant(g, bias, scale * float(layer.inputs[0].scale)), transB=1)


def _constant(g: Graph, values: Array, scale: float) -> str:
    return g.op("DequantizeLinear", g.constant(values, values.dtype), g.constant(scale), g.constant(0, values.dtype))


def _given(constant: Array | None) -> Array:
    assert constant is not None
    return constant


def _manifest() -> Manifest:
    return Manifest(
        schema=1,
        name="thermal",
        version=1,
        task="classifier",
        model=NAME,
        files={},
        inputs=(Port(name="temperatures", shape=(1, WINDOW), dtype="float32", unit="degC", kind="signal"),),
        outputs=(Port(name="shares", shape=(1, len(LABELS)), dtype="float32"),),
        labels=LABELS,
        window=Window(size=WINDOW, hop=1),
        precision="int8 (QDQ)",
        license="Apache-2.0",
        provenance={
            "recipe": "models/zoo/thermal/make.py",
            "command": "python -m models.zoo.thermal.make --out DIR",
            "trained": "no: weights set by hand",
            "hot_above_celsius": HOT_CELSIUS,
            "rise_celsius": RISE_CELSIUS,
            "opset": OPSET,
        },
    )


if __name__ == "__main__":
    sys.exit(main())
