"""Networks of well-known shapes with random weights, as ONNX graphs: for speed, not for sense. Batch norms are kept apart, as exporters do.

Made without any of the originals' files; what they compute means nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 9
CLASSES = 1000

_MOBILENET_BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_RESNET_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))


class Network:
    """A graph in the making; every method adds nodes after the tensor given and returns the name of its output."""

    def __init__(self, input_shape: tuple[int, ...], seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._input = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(input_shape))
        self._rank = len(input_shape) - 2

    def conv(self, x: str, given: int, made: int, kernel: int, stride: int = 1, groups: int = 1) -> str:
        """Convolution without bias (as exporters write it before a batch norm), then the batch norm."""
        shape = (made, given // groups, *[kernel] * self._rank)
        weight = self._weight(self._rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape))
        pads = [kernel // 2] * 2 * self._rank
        sizes = {"kernel_shape": [kernel] * self._rank, "strides": [stride] * self._rank, "pads": pads, "group": groups}
        convolved = self._node("Conv", x, weight, **sizes)
        statistics = (self._rng.uniform(0.8, 1.2, made), self._rng.normal(0, 0.1, made), self._rng.normal(0, 0.1, made), np.ones(made))
        return self._node("BatchNormalization", convolved, *map(self._weight, statistics))

    def relu(self, x: str) -> str:
        return self._node("Relu", x)

    def relu6(self, x: str) -> str:
        return self._node("Clip", x, self._weight(np.array(0.0)), self._weight(np.array(6.0)))

    def add(self, x: str, y: str) -> str:
        return self._node("Add", x, y)

    def max_pool(self, x: str, kernel: int, stride: int) -> str:
        pads = [kernel // 2] * 2 * self._rank
        return self._node("MaxPool", x, kernel_shape=[kernel] * self._rank, strides=[stride] * self._rank, pads=pads)

    def classify(self, x: str, given: int, classes: int) -> str:
        """Mean over space and one dense layer."""
        flat = self._node("Flatten", self._node("GlobalAveragePool", x))
        weight = self._weight(self._rng.normal(0, np.sqrt(1 / given), (classes, given)))
        return self._node("Gemm", flat, weight, self._weight(np.zeros(classes)), transB=1)

    def save(self, last: str, classes: int, path: Path) -> Path:
        """Writes the graph that ends in the tensor `last`."""
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, classes])
        self._nodes.append(helper.make_node("Identity", [last], ["y"]))
        graph = helper.make_graph(self._nodes, path.stem, [self._input], [output], self._weights)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION), str(path))
        return path

    def _weight(self, values: Any) -> str:
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def _node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name=f"n{len(self._nodes)}", **attributes))
        return name


def mobilenet_v2(path: Path) -> Path:
    """Input 1x3x224x224; 3.5 M parameters; the blocks of Sandler et al., CVPR 2018, table 2."""
    net = Network((1, 3, 224, 224))
    x, channels = net.relu6(net.conv("x", 3, 32, 3, 2)), 32
    for expansion, made, repeats, first_stride in _MOBILENET_BLOCKS:
        for repeat in range(repeats):
            stride, wide = first_stride if repeat == 0 else 1, channels * expansion
            y = net.relu6(net.conv(x, channels, wide, 1)) if expansion > 1 else x
            y = net.conv(net.relu6(net.conv(y, wide, wide, 3, stride, groups=wide)), wide, made, 1)
            x, channels = (net.add(x, y) if stride == 1 and channels == made else y), made
    return net.save(net.classify(net.relu6(net.conv(x, channels, 1280, 1)), 1280, CLASSES), CLASSES, path)


def resnet50(path: Path) -> Path:
    """Input 1x3x224x224; 25.6 M parameters; the bottlenecks of He et al., CVPR 2016, table 1."""
    net = Network((1, 3, 224, 224))
    x, channels = net.max_pool(net.relu(net.conv("x", 3, 64, 7, 2)), 3, 2), 64
    for width, repeats, first_stride in _RESNET_STAGES:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            y = net.relu(net.conv(x, channels, width, 1))
            y = net.conv(net.relu(net.conv(y, width, width, 3, stride)), width, 4 * width, 1)
            shortcut = net.conv(x, channels, 4 * width, 1, stride) if repeat == 0 else x
            x, channels = net.relu(net.add(y, shortcut)), 4 * width
    return net.save(net.classify(x, channels, CLASSES), CLASSES, path)


def cnn_1d(path: Path) -> Path:
    """Input 1x3x128, such as one window of an accelerometer; 32 k parameters, six classes."""
    net = Network((1, 3, 128))
    x = net.relu(net.conv("x", 3, 32, 5))
    x = net.relu(net.conv(x, 32, 64, 5, 2))
    x = net.relu(net.conv(x, 64, 64, 5, 2))
    return net.save(net.classify(x, 64, 6), 6, path)
