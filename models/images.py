"""A picture as the input of a model: sized, in the model's layout, its pixels scaled to what the model was trained on.

The only module that imports Pillow. A photo is turned upright as its camera noted. Resizing is bilinear. Without a
manifest the aspect ratio is not kept and nothing is cropped.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from edge_runtime.bundle import Port
from edge_runtime.errors import InputError, MissingDependency, ModelRefused, RefusalReason
from edge_runtime.types import Array, TensorInfo
from models.tensors import numpy_dtype, shape_text

SUFFIXES = (".bmp", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
DEFAULT_MEAN = DEFAULT_SCALE = (127.5,)

_MOST_PIXELS = 128_000_000
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
    resize: Literal["stretch", "crop", "pad"] = "stretch"
    reverse: bool = False  # blue first

    @classmethod
    def of(cls, tensor: TensorInfo) -> Layout:
        """Raises InputError when the input is no picture."""
        if len(tensor.shape) == 3:
            return cls(*tensor.shape[1:], 1, ranked=False)
        if len(tensor.shape) == 4:
            _, first, middle, last = tensor.shape
            for counts in ((1, 3), (4,)):
                if last in counts:
                    return cls(first, middle, last)
                if first in counts:
                    return cls(middle, last, first, channels_first=True)
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
    return _laid_out(values, layout), note


def read_declared(path: Path, tensor: TensorInfo, port: Port) -> tuple[Array, str]:
    """One picture as the manifest's port says, as an array of the input's whole shape, and a note on how it was read.

    With `mean` or `std` pixels become (pixel - mean) / std, real values that the loaded model quantizes. Without, the input's dtype holds
    the pixels themselves: 0..255 in floats and uint8, minus 128 in int8. Raises InputError, ModelRefused for a port that is no picture.
    """
    layout = declared_layout(tensor, port)
    pixels = _pixels(path, layout)
    if port.mean or port.std:
        values, note = _standardized(pixels, port.mean or (0.0,), port.std or (1.0,))
    elif tensor.dtype == "int8":
        values, note = (pixels.astype(np.int16) - 128).astype(np.int8), "pixels - 128"
    else:
        values, note = pixels.astype(numpy_dtype(tensor)), "pixels as they are"
    size = f"{layout.width}x{layout.height} " if layout.width > 0 and layout.height > 0 else ""
    colours = "grey" if layout.channels == 1 else "".join(port.channels) or "RGB"
    return _laid_out(values, layout), f"{size}{colours} by {port.resize}, {note}, as the manifest says"


def declared_layout(tensor: TensorInfo, port: Port) -> Layout:
    """Where the port's picture lies in the input. Raises ModelRefused(WRONG_SHAPE | WRONG_DTYPE) when it cannot be one."""
    try:
        layout = Layout.of(replace_shape(tensor, port.shape))
    except InputError as err:
        raise ModelRefused(RefusalReason.WRONG_SHAPE, f"the manifest declares a picture, but {err}") from err
    colours = tuple(colour.upper()[:1] for colour in port.channels)
    orders = {1: (("G",), ("L",), ("Y",)), 3: (("R", "G", "B"), ("B", "G", "R")), 4: (("R", "G", "B", "A"),)}[layout.channels]
    if colours and colours not in orders:
        raise ModelRefused(
            RefusalReason.WRONG_SHAPE,
            f"input `{tensor.name}` takes {layout.channels} colours; the manifest's channels are {', '.join(port.channels)} "
            f"(expected {' or '.join('+'.join(order) for order in orders)})",
        )
    if any(len(numbers) not in (0, 1, layout.channels) for numbers in (port.mean, port.std)) or 0.0 in port.std:
        raise ModelRefused(
            RefusalReason.WRONG_SHAPE,
            f"input `{tensor.name}`: the manifest's mean and std take one number or one a colour ({layout.channels}), std none that is 0",
        )
    return replace(layout, resize=port.resize, reverse=colours == ("B", "G", "R"))


def replace_shape(tensor: TensorInfo, shape: tuple[int, ...]) -> TensorInfo:
    """The tensor with the free dimensions that a manifest fixes filled in."""
    if len(shape) != len(tensor.shape):
        return tensor
    filled = tuple(there if here < 0 else here for here, there in zip(tensor.shape, shape, strict=True))
    return msgspec.structs.replace(tensor, shape=filled)


def _laid_out(values: Array, layout: Layout) -> Array:
    """HxWxC as the input lays it out, with a batch of one."""
    if layout.reverse:
        values = values[:, :, ::-1]
    if layout.channels_first:
        values = np.ascontiguousarray(values.transpose(2, 0, 1))
    elif not layout.ranked:
        values = values[:, :, 0]
    return np.ascontiguousarray(values[np.newaxis])


def _pixels(path: Path, layout: Layout) -> Array:
    """HxWxC uint8 of the model's size."""
    try:
        from PIL import Image, ImageOps
    except ImportError as err:
        raise MissingDependency("pillow", "image") from err
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
            _check_size(picture)
            converted = ImageOps.exif_transpose(_eight_bits(picture)).convert(_MODES[layout.channels])
            size = (layout.width if layout.width > 0 else converted.width, layout.height if layout.height > 0 else converted.height)
            fit: Any = {"stretch": converted.resize, "crop": partial(ImageOps.fit, converted), "pad": partial(ImageOps.pad, converted)}
            resized = converted if converted.size == size else fit[layout.resize](size, Image.Resampling.BILINEAR)
    except InputError:
        raise
    except Exception as err:  # its decoders raise whatever a damaged file makes them raise
        raise InputError(f"{path}: not a picture that can be read: {err}") from err
    return np.asarray(resized, np.uint8).reshape(resized.height, resized.width, layout.channels)


def _check_size(picture: Any) -> None:
    if picture.width * picture.height > _MOST_PIXELS:
        raise InputError(f"{picture.filename}: {picture.width} x {picture.height} pixels, at most {_MOST_PIXELS} are read; make it smaller")


def _eight_bits(picture: Any) -> Any:
    """A picture of 16 bits a pixel as one of 8; others as they are. Pillow itself would cut off all above 255."""
    if not picture.mode.startswith("I;16"):
        return picture
    return picture.point(lambda value: value / 256, "L")


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
        raise InputError(f"mean and scale take one value or one per channel ({channels}), got {len(mean)} and {len(scale)}")
    values = (pixels.astype(np.float32) - np.asarray(mean, np.float32)) / np.asarray(scale, np.float32)
    return values.astype(np.float32), f"(pixels - {_list(mean)}) / {_list(scale)}"


def _list(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)
