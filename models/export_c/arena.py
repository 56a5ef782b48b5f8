"""Places the tensors of a network in one small memory: those that are not needed at the same time may share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from models.export_c.network import Network

_ALIGN = 4


@dataclass(frozen=True, slots=True)
class Arena:
    """Where each tensor lies, by name, and the bytes of all."""

    offsets: Mapping[str, int]
    size_bytes: int


def place(network: Network) -> Arena:
    """The largest first, each at the lowest place that is free as long as it lives."""
    lives = _lives(network)
    sizes = {tensor.name: _aligned(tensor.shape.count) for layer in network.layers for tensor in (*layer.inputs, layer.output)}
    sizes[network.input.name] = _aligned(network.input.shape.count)
    offsets: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        taken = sorted((offsets[other], offsets[other] + sizes[other]) for other in offsets if _together(lives[name], lives[other]))
        offsets[name] = _lowest_gap(taken, sizes[name])
    return Arena(offsets, max(offsets[name] + sizes[name] for name in offsets))


def _lives(network: Network) -> dict[str, tuple[int, int]]:
    """The first and the last layer at which each tensor is needed; the input from before the first, the output to after the last."""
    lives = {network.input.name: (-1, -1)}
    for at, layer in enumerate(network.layers):
        for tensor in layer.inputs:
            lives[tensor.name] = (lives[tensor.name][0], at)
        lives[layer.output.name] = (at, at)
    lives[network.output.name] = (lives[network.output.name][0], len(network.layers))
    return lives


def _together(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _lowest_gap(taken: list[tuple[int, int]], size: int) -> int:
    at = 0
    for first, end in taken:
        if at + size <= first:
            break
        at = max(at, end)
    return at


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
