"""The factory model of our sensor node: 16 temperatures to normal, rising or hot. Its weights are set by hand, nothing is trained.

`python -m models.export_c.factory` writes adapters/firmware/src/factory_model.c anew; a test compares the two.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from models.export_c.export import Exported, c_array, pack
from models.export_c.network import Layer, Network, Operator, Rounding, Shape, Tensor, Window

LABELS = ("normal", "rising", "hot")
WINDOW = 16
HOT_CELSIUS = 60
RISE_CELSIUS = 3

_GROUP = 4


def network() -> Network:
    """Means of four samples each; how far the last is above 60 degrees and above the first; shares of the three classes."""
    one = np.float32(1.0)
    given = Tensor("temperatures", Shape(1, WINDOW, 1), one, 0)
    means = Tensor("means", Shape(1, WINDOW // _GROUP, 1), one, 0)
    flat = Tensor("means", Shape(1, 1, WINDOW // _GROUP), one, 0)
    logits = Tensor("logits", Shape(1, 1, len(LABELS)), np.float32(0.5), 0)
    shares = Tensor("shares", Shape(1, 1, len(LABELS)), np.float32(1 / 256), -128)
    mean = Layer(
        Operator.CONV, "means", (given,), means, Window((1, _GROUP), (1, _GROUP)),
        weights=np.full((1, 1, _GROUP, 1), 64, np.int8), weight_scales=np.array([1 / 256], np.float32), bias=np.zeros(1, np.int32),
    )  # fmt: skip
    weights = np.array([[0, 0, 0, 0], [-32, 0, 0, 32], [0, 0, 0, 32]], np.int8).reshape(3, 1, 1, 4)
    bias = np.array([0, -32 * RISE_CELSIUS, -32 * HOT_CELSIUS], np.int32)
    decide = Layer(Operator.CONV, "logits", (flat,), logits, weights=weights, weight_scales=np.full(3, 1 / 32, np.float32), bias=bias)
    share = Layer(Operator.SOFTMAX, "shares", (logits,), shares)
    return Network([mean, decide, share], given, shares)


def exported() -> Exported:
    """Signed with the development key; it is in flash beside the program and its signature is not judged."""
    return pack(network(), Rounding.HALF_EVEN, name="temperature", version=1)


def source() -> str:
    """The text of factory_model.c."""
    text = c_array(exported(), "factory_model")
    text = text.replace("edge-runtime model export-c", "python -m models.export_c.factory")
    return text.replace("_Alignas(8) const", '__attribute__((section(".model"))) _Alignas(8) const')


def main() -> None:
    path = Path(__file__).resolve().parents[2] / "adapters/firmware/src/factory_model.c"
    path.write_text(source())
    sys.stdout.write(f"{path}: {len(exported().data)} bytes\n")


if __name__ == "__main__":
    main()
