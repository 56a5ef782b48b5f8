"""A picture as the input of a model: sized, in the model's layout, its pixels scaled to what the model was trained on.

The only module that imports Pillow. Resizing is bilinear without keeping the aspect ratio; nothing is cropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_runtime.errors import InputError, MissingDependency
from edge_runtime.types import Array, TensorInfo
from models.tensors import shape_text

SUFFIXES = (".bmp", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
DEFAULT_MEAN = DEFAULT_SCALE = (127.5,)

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_PIXEL_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-128.0, 127.0))


@dataclass(frozen=True, slots=True)
class Layout:
    """Where height, width and channels lie in an input; -1 for a free size."""

    height: int
    width: int
    channels: int
    channels_first: bool = False
    ranked: bool = True  # has an axis for the channels

    @classmethod
    def of(cls, tensor: TensorInfo) -> Layout:
        """Raises InputError when the input is no picture."""
        match tensor.shape:
            case (_, height, width, channels) if channels in _MODES:
                return cls(height, width, channels)
            case (_, channels, height, width) if channels in _MODES:
                return cls(height, width, channels, channels_first=True)
            case (_, height, width):
                return cls(height, width, 1, ranked=False)
        raise InputError(
            f"input `{tensor.name}` takes shape {shape_text(tensor.shape)}, which is no picture; give it .npy, .csv or raw values"
        )


def read(path: Path, tensor: TensorInfo, mean: tuple[float, ...] | None, scale: tuple[float, ...] | None) -> tuple[Array, str]:
    """One picture as an array of the input's whole shape, and a note on how its pixels were scaled.

    With `mean` or `scale` (one value, or one per channel) pixels become (pixel - mean) / scale; else see `_scaled`.
    """
    layout = Layout.of(tensor)
    pixels = _pixels(path, layout)
    if mean is not None or scale is not None:
        values, note = _standardized(pixels, mean or (0.0,), scale or (1.0,))
    else:
        values, note = _scaled(pixels, tensor)
    if layout.channels_first:
        values = np.ascontiguousarray(values.transpose(2, 0, 1))
    elif not layout.ranked:
        values = values[:, :, 0]
    return values[np.newaxis], note


def _pixels(path: Path, layout: Layout) -> Array:
    """HxWxC uint8 of the model's size."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as err:
        raise MissingDependency("pillow", "image") from err
    try:
        with Image.open(path) as picture:
            converted = picture.convert(_MODES[layout.channels])
            size = (layout.width if layout.width > 0 else converted.width, layout.height if layout.height > 0 else converted.height)
            resized = converted if converted.size == size else converted.resize(size, Image.Resampling.BILINEAR)
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as err:
        raise InputError(f"{path}: not a picture that can be read: {err}") from err
    return np.asarray(resized, np.uint8).reshape(resized.height, resized.width, layout.channels)


def _scaled(pixels: Array, tensor: TensorInfo) -> tuple[Array, str]:
    """Pixels as the model most likely wants them.

    uint8 inputs get them as they are. An int8 input whose real range is a usual one ([0, 1], [-1, 1], ...) gets them shifted by
    128, which is exact; every other input gets pixel / 127.5 - 1.
    """
    if tensor.dtype == "uint8":
        return pixels, "pixels as they are"
    if tensor.dtype == "int8" and tensor.scale and _is_usual(tensor):
        return (pixels.astype(np.int16) - 128).astype(np.int8), "pixels - 128, the whole range of the quantized input"
    return _standardized(pixels, DEFAULT_MEAN, DEFAULT_SCALE)


def _is_usual(tensor: TensorInfo) -> bool:
    low, high = (tensor.scale * (stored - tensor.zero_point) for stored in (-128, 127))
    tolerance = 1.5 * tensor.scale
    return any(abs(low - least) <= tolerance and abs(high - most) <= tolerance for least, most in _PIXEL_RANGES)


def _standardized(pixels: Array, mean: tuple[float, ...], scale: tuple[float, ...]) -> tuple[Array, str]:
    channels = pixels.shape[2]
    if len(mean) not in (1, channels) or len(scale) not in (1, channels):
        raise InputError(f"--mean and --scale take one value or one per channel ({channels}), got {len(mean)} and {len(scale)}")
    values = (pixels.astype(np.float32) - np.asarray(mean, np.float32)) / np.asarray(scale, np.float32)
    return values.astype(np.float32), f"(pixels - {_list(mean)}) / {_list(scale)}"


def _list(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)
