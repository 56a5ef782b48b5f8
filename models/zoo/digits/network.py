"""A small convolutional network in numpy: forward, backward, Adam, and the same network as an ONNX graph in float or INT8. No files.

Two 3x3 convolutions (the second with stride 2), one hidden layer, ten classes. It is trained with shifted, scaled and noisy copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_runtime.types import Array
from models.progress import Step
from models.qdq import Graph

FILTERS = (16, 24)
HIDDEN = 48
BATCH = 64
_RATE, _DECAY, _SMOOTHING, _NOISE = 3e-3, 1e-3, 0.05, 0.04
_ROOM = 1.02


@dataclass(frozen=True, slots=True)
class Network:
    """Weights of both convolutions [out, in, 3, 3] and of both layers [out, in], each with its biases [out]."""

    parameters: tuple[Array, ...]

    def logits(self, x: Array) -> Array:
        """[n, 10] of inputs [n, 1, 8, 8]."""
        result: Array = _forward(self.parameters, x)[-1]
        return result

    def ranges(self, x: Array) -> tuple[float, float, float, float, float]:
        """The tops of the three hidden activations, and the least and greatest logit, over `x`."""
        first, _, second, _, hidden, logits = _forward(self.parameters, x)
        top_first, top_second, top_hidden = (float(values.max()) * _ROOM for values in (first, second, hidden))
        return top_first, top_second, top_hidden, float(logits.min()) * _ROOM, float(logits.max()) * _ROOM


def train(x: Array, y: Array, x_check: Array, y_check: Array, *, classes: int, epochs: int, seed: int, step: Step) -> Network:
    """Trains on [n, 1, 8, 8] and labels [n] and keeps the epoch with the least loss on `x_check`. The same seed gives the same bits."""
    rng = np.random.default_rng(seed)
    parameters = _initial(rng, classes)
    moments = [(np.zeros_like(value), np.zeros_like(value)) for value in parameters]
    best, kept, steps = np.inf, [value.copy() for value in parameters], 0
    for epoch in range(epochs):
        rate = _RATE * 0.5 * (1 + np.cos(np.pi * epoch / epochs))
        order = rng.permutation(len(x))
        for start in range(0, len(x), BATCH):
            rows, steps = order[start : start + BATCH], steps + 1
            for value, gradient, (m, v) in zip(parameters, _gradients(parameters, _augmented(x[rows], rng), y[rows]), moments, strict=True):
                m += 0.1 * (gradient - m)
                v += 0.001 * (gradient * gradient - v)
                value -= rate * (m / (1 - 0.9**steps) / (np.sqrt(v / (1 - 0.999**steps)) + 1e-8) + _DECAY * value)
        loss = _loss(_forward(parameters, x_check)[-1], y_check)
        step(epoch + 1, epochs, f"validation loss {loss:.4f}")
        if loss < best:
            best, kept = loss, [value.copy() for value in parameters]
    return Network(tuple(np.ascontiguousarray(value, np.float32) for value in kept))


def graph(network: Network, ranges: tuple[float, float, float, float, float], *, int8: bool) -> Graph:
    """`image` [1, 1, 8, 8] of 0..1 in, `probabilities` [1, classes] out."""
    first, first_bias, second, second_bias, hidden, hidden_bias, last, last_bias = network.parameters
    top_first, top_second, top_hidden, least, greatest = ranges
    g = Graph("digits", int8=int8)
    x = g.quantized(g.input("image", [1, 1, 8, 8]), 0.0, 1.0)
    x = g.quantized(g.conv_bias(x, first, first_bias, relu=True, pads=[1, 1, 1, 1]), 0.0, top_first)
    x = g.quantized(g.conv_bias(x, second, second_bias, relu=True, pads=[1, 1, 1, 1], strides=[2, 2]), 0.0, top_second)
    x = g.quantized(g.op("Flatten", x), 0.0, top_second)
    x = g.quantized(g.gemm(x, hidden, hidden_bias, relu=True), 0.0, top_hidden)
    x = g.quantized(g.gemm(x, last, last_bias), least, greatest)
    g.output(g.op("Softmax", x, axis=1), "probabilities", [1, len(last)])
    return g


def _initial(rng: np.random.Generator, classes: int) -> list[Array]:
    shapes = ((FILTERS[0], 1, 3, 3), (FILTERS[1], FILTERS[0], 3, 3), (HIDDEN, FILTERS[1] * 16), (classes, HIDDEN))
    values: list[Array] = []
    for shape in shapes:
        fan_in = int(np.prod(shape[1:]))
        values += [rng.normal(0, np.sqrt(2 / fan_in), shape), np.zeros(shape[0])]
    return values


def _augmented(x: Array, rng: np.random.Generator) -> Array:
    """Moved by up to one pixel, brighter or darker, with noise."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    moves = rng.choice([0, 1, 1, 2], (len(x), 2))
    moved = np.stack([image[:, dy : dy + 8, dx : dx + 8] for image, (dy, dx) in zip(padded, moves, strict=True)])
    gain = rng.uniform(0.8, 1.1, (len(x), 1, 1, 1))
    result: Array = np.clip(moved * gain + _NOISE * rng.standard_normal(moved.shape), 0, 1)
    return result


def _patches(x: Array, stride: int) -> Array:
    """3x3 patches of [n, c, h, w] padded by one: [n, positions, c * 9]."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    view = np.lib.stride_tricks.sliding_window_view(padded, (1, 1, 3, 3))[:, :, ::stride, ::stride, 0, 0]
    view = view.transpose(0, 2, 3, 1, 4, 5)
    result: Array = view.reshape(len(x), view.shape[1] * view.shape[2], -1)
    return result


def _forward(parameters: Any, x: Array) -> tuple[Array, Array, Array, Array, Array, Array]:
    """First activation [n, 16, 8, 8], its patches, second activation flat, patches of the input, hidden layer and logits."""
    w1, b1, w2, b2, w3, b3, w4, b4 = parameters
    given = _patches(x, 1)
    first = np.maximum(given @ w1.reshape(len(w1), -1).T + b1, 0).transpose(0, 2, 1).reshape(len(x), len(w1), 8, 8)
    between = _patches(first, 2)
    second = np.maximum(between @ w2.reshape(len(w2), -1).T + b2, 0).transpose(0, 2, 1).reshape(len(x), -1)
    hidden = np.maximum(second @ w3.T + b3, 0)
    return first, between, second, given, hidden, hidden @ w4.T + b4


def _gradients(parameters: list[Array], x: Array, y: Array) -> list[Array]:
    _, _, w2, _, w3, _, w4, _ = parameters
    first, between, second, given, hidden, logits = _forward(parameters, x)
    slope = _shares(logits)
    slope -= _SMOOTHING / slope.shape[1]
    slope[np.arange(len(y)), y] -= 1 - _SMOOTHING
    slope /= len(y)
    d_hidden = (slope @ w4) * (hidden > 0)
    d_second = ((d_hidden @ w3) * (second > 0)).reshape(len(x), len(w2), 16).transpose(0, 2, 1)
    d_first = _unpatched(d_second @ w2.reshape(len(w2), -1), first.shape) * (first > 0)
    d_first = d_first.reshape(len(x), first.shape[1], 64).transpose(0, 2, 1)
    return [
        np.einsum("npo,npk->ok", d_first, given, optimize=True).reshape(parameters[0].shape),
        d_first.sum(axis=(0, 1)),
        np.einsum("npo,npk->ok", d_second, between, optimize=True).reshape(w2.shape),
        d_second.sum(axis=(0, 1)),
        d_hidden.T @ second,
        d_hidden.sum(axis=0),
        slope.T @ hidden,
        slope.sum(axis=0),
    ]


def _unpatched(patches: Array, shape: tuple[int, ...]) -> Array:
    """Adds patches of stride 2 back to where they were taken: [n, 16, c * 9] to [n, c, 8, 8]."""
    count, channels = shape[:2]
    parts = patches.reshape(count, 4, 4, channels, 3, 3)
    padded = np.zeros((count, channels, 10, 10))
    for dy in range(3):
        for dx in range(3):
            padded[:, :, dy : dy + 8 : 2, dx : dx + 8 : 2] += parts[:, :, :, :, dy, dx].transpose(0, 3, 1, 2)
    return padded[:, :, 1:9, 1:9]


def _shares(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Array = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _loss(logits: Array, y: Array) -> float:
    return float(-np.log(_shares(logits)[np.arange(len(y)), y] + 1e-12).mean())
