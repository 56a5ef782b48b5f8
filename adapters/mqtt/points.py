"""What a device says and can be told, whatever its maker: the words between the profiles and the adapter. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edge_runtime.errors import InputError
from edge_runtime.units import parse_unit

MAX_PAYLOAD_BYTES = 256 * 1024
MAX_LIST_BYTES = 4 * 1024 * 1024
"""Of a bridge's list of all its devices."""

_MAX_TEXT = 64
_ALIASES = {"C": "degC", "°C": "degC", "F": "degF", "°F": "degF", "K": "K", "l": "l", "L": "l", "m³": "m3", "m³/h": "m3/h", "m/s²": "m/s2"}
_TRUE = frozenset({"on", "true", "open", "opened", "online", "yes", "1", "detected", "locked"})
_FALSE = frozenset({"off", "false", "closed", "close", "offline", "no", "0", "clear", "unlocked"})


class BadPayload(ValueError):
    """A message that is not what its topic promises; the words say what was expected and what came."""


@dataclass(frozen=True, slots=True)
class Point:
    """One thing of a device. With `states` it can be told to go to one of them; `writable` numbers lie within `minimum..maximum`.

    `choices` are the words of a value that is a word: its reading is the place in this list, in the unit `state`.
    """

    name: str
    unit: str = ""
    description: str = ""
    choices: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Said:
    """A value of a point: a number, or the `state` that an actuator is in. `value` None: the device says that it does not know."""

    point: Point
    value: float | None = None
    state: str | None = None
    wall_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Presence:
    """A device (all points whose name begins with `prefix`) is there or gone, by its broker's word."""

    prefix: str
    online: bool


@dataclass(frozen=True, slots=True)
class Publish:
    """A message to be sent."""

    topic: str
    payload: bytes
    retain: bool = False


class Profile(Protocol):
    """What is known of one maker's topics. One object per device or bridge; it may learn from what it hears."""

    @property
    def filters(self) -> Sequence[str]:
        """The topics to listen to."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the device has told all that it has: from the answer to `hello`, not from what happened to change meanwhile."""
        ...

    def hello(self) -> Sequence[Publish]:
        """What makes the device tell its whole state now."""
        ...

    def hear(self, topic: str, payload: bytes) -> Sequence[Said | Presence]:
        """What a message says; nothing when it is of no interest. Raises BadPayload."""
        ...

    def command(self, point: Point, state: str) -> Publish:
        """The message that brings an actuator to a state. Raises InputError."""
        ...


def parse_object(payload: bytes, limit: int = MAX_PAYLOAD_BYTES) -> dict[str, Any]:
    """A JSON object. Raises BadPayload."""
    found = parse_json(payload, limit)
    if not isinstance(found, dict):
        raise BadPayload(f"expected a JSON object, got {type(found).__name__}")
    return found


def parse_json(payload: bytes, limit: int = MAX_PAYLOAD_BYTES) -> Any:
    """JSON of a bounded size and depth, without NaN and without a key twice. Raises BadPayload."""
    if len(payload) > limit:
        raise BadPayload(f"{len(payload)} bytes, at most {limit} are read")
    try:
        return json.loads(payload, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as err:
        raise BadPayload(f"expected JSON: {str(err)[:_MAX_TEXT]}") from err


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadPayload("a key stands twice")
    return found


def _no_constant(name: str) -> Any:
    raise BadPayload(f"{name} is not JSON")


def text_of(payload: bytes) -> str:
    """A short text. Raises BadPayload."""
    try:
        return payload[: 4 * _MAX_TEXT].decode().strip()[:_MAX_TEXT]
    except UnicodeDecodeError as err:
        raise BadPayload("expected text") from err


def number(value: Any) -> float | None:
    """A finite number, or None for all else. True and false are 1 and 0; numbers as text are read."""
    try:
        found = float(value) if isinstance(value, (bool, int, float, str)) else math.nan
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def truth(value: Any) -> float | None:
    """1 or 0 for a boolean, its number, or one of its usual words; None for all else."""
    if isinstance(value, (bool, int, float)):
        return float(value) if value in (0, 1) else None
    word = str(value).strip().lower()[:_MAX_TEXT]
    return 1.0 if word in _TRUE else 0.0 if word in _FALSE else None


def place(value: Any, choices: Sequence[str]) -> float | None:
    """The place of a word among its choices."""
    return float(choices.index(value)) if isinstance(value, str) and value in choices else None


def known_unit(unit: object) -> str:
    """The unit as this runtime writes it; empty for one that it does not know."""
    text = unit if isinstance(unit, str) else ""
    text = _ALIASES.get(text, text)
    try:
        parse_unit(text)
    except InputError:
        return ""
    return text


def at(value: Any, path: Sequence[str | int]) -> Any:
    """What lies at the end of a path into objects and lists; None where it breaks off."""
    for step in path:
        if isinstance(value, Mapping) and isinstance(step, str):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and -len(value) <= step < len(value):
            value = value[step]
        else:
            return None
    return value


def chosen_number(point: Point, state: str) -> float:
    """A number that a writable point may be set to. Raises InputError."""
    found = number(state)
    low, high = point.minimum, point.maximum
    if found is None or (low is not None and found < low) or (high is not None and found > high):
        bounds = f" between {low:g} and {high:g}" if low is not None and high is not None else ""
        raise InputError(f"{point.name}: expected a number{bounds}, got `{state}`")
    return found
