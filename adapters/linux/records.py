"""What an IIO buffer's records hold: the element formats of `scan_elements/*_type` and their places, read into columns.

A format is `[be|le]:[s|u]BITS/STORAGE[xREPEAT][>>SHIFT]`. Elements stand in the order of their index, each at a multiple of its own size,
and a record ends at a multiple of its largest element.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import AdapterError

_FORMAT = re.compile(r"(be|le):([su])(\d{1,3})/(\d{1,3})(?:[xX](\d{1,3}))?(?:>>(\d{1,2}))?")
_STORAGE = (8, 16, 32, 64)


class Element(NamedTuple):
    """One channel in the records."""

    stem: str
    place: int
    big_endian: bool
    signed: bool
    bits: int
    storage_bytes: int
    shift: int


def parse_element(stem: str, index: str, text: str) -> Element:
    """Raises AdapterError for a format that is unknown, of several values, or wider than what it is stored in."""
    match = _FORMAT.fullmatch(text)
    if not match or not re.fullmatch(r"[0-9]{1,4}", index):
        raise AdapterError(f"{stem}: expected a format such as `le:s12/16>>4` and an index, got `{text[:40]}` and `{index[:10]}`")
    order, sign, bits, storage, repeat, shift = match.groups(default="0")
    element = Element(stem, int(index), order == "be", sign == "s", int(bits), int(storage) // 8, int(shift))
    fits = element.bits > 0 and element.bits + element.shift <= int(storage)
    if int(storage) not in _STORAGE or not fits or int(repeat) > 1:
        raise AdapterError(f"{stem}: cannot read `{text}`: one value of up to 64 bits in 8, 16, 32 or 64 is what can be captured")
    return element


class Records:
    """The layout of one record of these elements."""

    def __init__(self, elements: Sequence[Element]) -> None:
        self._elements = sorted(elements, key=lambda element: element.place)
        offsets, end = [], 0
        for element in self._elements:
            end = -(-end // element.storage_bytes) * element.storage_bytes
            offsets.append(end)
            end += element.storage_bytes
        largest = max((element.storage_bytes for element in self._elements), default=1)
        self.size_bytes = max(1, -(-end // largest) * largest)
        formats = [f"{'>' if element.big_endian else '<'}u{element.storage_bytes}" for element in self._elements]
        names = [element.stem for element in self._elements]
        self._dtype = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": self.size_bytes})

    def columns(self, data: bytes) -> dict[str, npt.NDArray[Any]]:
        """The stored integers of whole records by channel, oldest first: int64, or uint64 for unsigned ones of 64 bits."""
        records = np.frombuffer(data, self._dtype)
        return {element.stem: _integers(records[element.stem], element) for element in self._elements}


def _integers(stored: npt.NDArray[Any], element: Element) -> npt.NDArray[Any]:
    wide = stored.astype(np.uint64) >> np.uint64(element.shift)
    if element.bits < 64:
        wide &= np.uint64((1 << element.bits) - 1)
    if not element.signed:
        return wide if element.bits == 64 else wide.astype(np.int64)
    spare = np.int64(64 - element.bits)
    return (wide << spare.astype(np.uint64)).view(np.int64) >> spare
