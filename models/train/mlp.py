"""A small classifier network in numpy: one hidden layer, Adam, cosine schedule. Enough where the features are good; needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edge_runtime.types import Array

BATCH = 128
_RATE = 3e-3
_DECAY = 1e-4
_NOISE = 0.1
_LABEL_SMOOTHING = 0.05

Progress = Callable[[int, int, float], None]
"""`(epoch, epochs, loss)`"""


@dataclass(frozen=True, slots=True)
class Network:
    """Weights [out, in] and biases [out] of both layers."""

    first: Array
    first_bias: Array
    second: Array
    second_bias: Array

    def hidden(self, x: Array) -> Array:
        """Activations of the hidden layer."""
        return np.maximum(x @ self.first.T + self.first_bias, 0)

    def logits(self, x: Array) -> Array:
        """[n, classes]"""
        result: Array = self.hidden(x) @ self.second.T + self.second_bias
        return result


def train(x: Array, y: Array, classes: int, *, hidden: int, epochs: int, seed: int, progress: Progress) -> Network:
    """Trains on standardized features [n, features] and labels [n]; rare classes weigh more. The same seed gives the same bits."""
    rng = np.random.default_rng(seed)
    inputs = x.shape[1]
    weights = [
        rng.normal(0, np.sqrt(2 / inputs), (inputs, hidden)),
        np.zeros(hidden),
        rng.normal(0, np.sqrt(2 / hidden), (hidden, classes)),
        np.zeros(classes),
    ]
    targets = np.full((len(y), classes), _LABEL_SMOOTHING / classes)
    targets[np.arange(len(y)), y] += 1 - _LABEL_SMOOTHING
    balance = len(y) / (classes * np.bincount(y, minlength=classes))[y]
    adam = _Adam(weights)
    for epoch in range(epochs):
        rate = _RATE * 0.5 * (1 + np.cos(np.pi * epoch / epochs))
        order, losses = rng.permutation(len(x)), []
        for start in range(0, len(x), BATCH):
            rows = order[start : start + BATCH]
            noisy = x[rows] + _NOISE * rng.standard_normal((len(rows), inputs))
            loss, gradients = _gradients(weights, noisy, targets[rows], balance[rows])
            losses.append(loss)
            adam.step(gradients, rate)
        progress(epoch + 1, epochs, float(np.mean(losses)))
    first, first_bias, second, second_bias = (np.ascontiguousarray(weight.T, np.float32) for weight in weights)
    return Network(first, first_bias, second, second_bias)


def _gradients(weights: list[Array], x: Array, targets: Array, balance: Array) -> tuple[float, list[Array]]:
    first, first_bias, second, second_bias = weights
    hidden = np.maximum(x @ first + first_bias, 0)
    logits = hidden @ second + second_bias
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    loss = float(-(balance[:, None] * targets * np.log(shares + 1e-12)).sum() / len(x))
    slope: Array = (shares - targets) * balance[:, None] / len(x)
    back: Array = (slope @ second.T) * (hidden > 0)
    return loss, [x.T @ back, back.sum(axis=0), hidden.T @ slope, slope.sum(axis=0)]


class _Adam:
    """Adam with decoupled weight decay, in place."""

    def __init__(self, weights: list[Array]) -> None:
        self._weights = weights
        self._first = [np.zeros_like(weight) for weight in weights]
        self._second = [np.zeros_like(weight) for weight in weights]
        self._steps = 0

    def step(self, gradients: list[Array], rate: float) -> None:
        self._steps += 1
        for weight, gradient, m, v in zip(self._weights, gradients, self._first, self._second, strict=True):
            m += 0.1 * (gradient - m)
            v += 0.001 * (gradient * gradient - v)
            corrected = m / (1 - 0.9**self._steps) / (np.sqrt(v / (1 - 0.999**self._steps)) + 1e-8)
            weight -= rate * (corrected + _DECAY * weight)
