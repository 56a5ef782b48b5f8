"""Declared GPIO lines as channels `gpio/NAME`: inputs that are read or that tell their edges, and outputs.

A line is named as the board names it (`GPIO17`), or by its chip and number (`gpiochip0:17`, `pinctrl-bcm2711:17`). Lines are taken when
the adapter opens and given back when it closes; nobody else can move them meanwhile. Which state is the safe one is the runtime's
business.
"""

from __future__ import annotations

import errno
import fcntl
import re
import time
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Literal, NamedTuple

import msgspec

from adapters.linux.gpio_uapi import Chip, Flag, Ioctl, Line, chip_info, line_state
from adapters.linux.probe import Values, folders
from edge_runtime.clock import Clock
from edge_runtime.errors import AdapterDisconnected, AdapterError, InputError
from edge_runtime.types import ChannelInfo, ChannelKind, Sample

STATES = ("off", "on")
LONGEST_DEBOUNCE_MS = 60_000.0
CONSUMER = "edge-"
"""What the kernel lists as the holder begins with; it names interrupts by it, so it holds no slash."""

_PREFIX = "gpio/"
_CHIP = re.compile(r"gpiochip\d+")
_MOST_CHIPS, _MOST_LINES = 64, 1024
_EDGES = {
    "none": Flag(0),
    "rising": Flag.EDGE_RISING,
    "falling": Flag.EDGE_FALLING,
    "both": Flag.EDGE_RISING | Flag.EDGE_FALLING,
}
_BIASES = {
    "as_is": Flag(0),
    "disabled": Flag.BIAS_DISABLED,
    "pull_up": Flag.BIAS_PULL_UP,
    "pull_down": Flag.BIAS_PULL_DOWN,
}
_DRIVES = {"push_pull": Flag(0), "open_drain": Flag.OPEN_DRAIN, "open_source": Flag.OPEN_SOURCE}


class LineSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line. `on` is the active level: with `active_low` the low one.

    Inputs: `edges` other than `none` make a streaming channel; `debounce_ms` is the kernel's. Outputs: `initial: keep` leaves a line that
    is an output already at its level and takes another to `off`; `on_close: return` makes it an input again.
    """

    line: str
    direction: Literal["input", "output"] = "input"
    active_low: bool = False
    bias: Literal["as_is", "disabled", "pull_up", "pull_down"] = "as_is"
    edges: Literal["none", "rising", "falling", "both"] = "both"
    debounce_ms: float = 0.0
    drive: Literal["push_pull", "open_drain", "open_source"] = "push_pull"
    initial: Literal["keep", "on", "off"] = "keep"
    on_close: Literal["keep", "return"] = "keep"

    @property
    def flags(self) -> Flag:
        """The line as it is asked for, without its edges."""
        polarity = Flag.ACTIVE_LOW if self.active_low else Flag(0)
        if self.direction == "input":
            return Flag.INPUT | polarity | _BIASES[self.bias]
        return Flag.OUTPUT | polarity | _BIASES[self.bias] | _DRIVES[self.drive]

    @property
    def watched(self) -> Flag:
        """The edges that a stream tells."""
        return _EDGES[self.edges] if self.direction == "input" else Flag(0)


class Place(NamedTuple):
    """Where a line is."""

    chip: Chip
    offset: int


def check_lines(lines: Mapping[str, LineSpec], name: str) -> None:
    """Raises InputError for what contradicts itself, before any hardware is touched."""
    for key, spec in lines.items():
        where = f"{name}.options.lines.{key}"
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", key):
            raise InputError(f"{where}: expected a name of letters, digits, `_`, `.` and `-`")
        if not 0 <= spec.debounce_ms <= LONGEST_DEBOUNCE_MS:
            raise InputError(f"{where}.debounce_ms: expected 0 to {LONGEST_DEBOUNCE_MS:g}, got {spec.debounce_ms:g}")
        if spec.direction == "output" and spec.debounce_ms:
            raise InputError(f"{where}.debounce_ms: only inputs are debounced; drop it or make `direction` `input`")
        if spec.direction == "input" and (spec.drive != "push_pull" or spec.initial != "keep" or spec.on_close != "keep"):
            raise InputError(f"{where}: `drive`, `initial` and `on_close` are for outputs; drop them or make `direction` `output`")


def chips(root: str, ioctl: Ioctl = fcntl.ioctl) -> tuple[list[Chip], list[str]]:
    """The chips that answer, and the paths of those that may not be opened."""
    found: list[Chip] = []
    closed: list[str] = []
    for name, path in folders(f"{root}/dev"):
        if _CHIP.fullmatch(name) and len(found) < _MOST_CHIPS:
            try:
                found.append(chip_info(path, ioctl))
            except PermissionError:
                closed.append(path)
            except OSError:
                continue
    return found, closed


def find_line(text: str, found: list[Chip], ioctl: Ioctl = fcntl.ioctl) -> Place:
    """The line of that name, or `chip:number` by the chip's name or label.

    Raises AdapterDisconnected when it is not here (its chip may yet be plugged in), AdapterError when the name has two lines.
    """
    chip_name, colon, number = text.rpartition(":")
    if colon and number.isdecimal() and len(number) <= 9:
        for chip in found:
            if chip_name in (chip.name, chip.label) and int(number) < chip.lines:
                return Place(chip, int(number))
        known = ", ".join(f"{chip.name} ({chip.label}, {chip.lines} lines)" for chip in found) or "none"
        raise AdapterDisconnected(f"no GPIO chip `{chip_name}` with a line {number} here (chips: {known})")
    names = dict(_named(found, ioctl))
    places = [place for place, name in names.items() if name == text]
    if len(places) > 1:
        both = ", ".join(f"{place.chip.name}:{place.offset}" for place in places)
        raise AdapterError(f"{len(places)} GPIO lines are named `{text}`: write one of {both}")
    if not places:
        near = get_close_matches(text, sorted(set(names.values())), n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise AdapterDisconnected(f"no GPIO line `{text}` on {len(found)} chips{hint}; `chip:number` works for lines without a name")
    return places[0]


def _named(found: list[Chip], ioctl: Ioctl) -> Iterable[tuple[Place, str]]:
    for chip in found:
        for offset in range(min(chip.lines, _MOST_LINES)):
            try:
                name = line_state(chip.path, offset, ioctl).name
            except OSError:
                break
            if name:
                yield Place(chip, offset), name


class InputFeed:
    """The edges of one input, as samples with the kernel's time; the present level comes first."""

    def __init__(self, channel: str, spec: LineSpec, line: Line, clock: Clock, counters: dict[str, int]) -> None:
        self._channel, self._spec, self._line, self._clock = channel, spec, line, clock
        self._counters = counters
        self._number: int | None = None

    def start(self, channels: Collection[str]) -> tuple[int, list[Sample]]:
        """Begins to watch. Raises AdapterDisconnected."""
        while self._line.edges():
            pass
        self._number = None
        self._reconfigure(self._spec.watched)
        return self._line.fd, [Sample(self._channel, float(self._line.get()))]

    def take(self) -> list[Sample]:
        """What has come since. Raises AdapterDisconnected when the chip is gone."""
        samples = []
        since_monotonic_ns = self._clock.now().wall_ns - time.monotonic_ns()
        for edge in self._line.edges():
            if self._number is not None and edge.number > self._number + 1:
                self._counters["edges_lost"] = self._counters.get("edges_lost", 0) + edge.number - self._number - 1
            self._number = edge.number
            samples.append(Sample(self._channel, float(edge.rising), wall_ns=max(0, since_monotonic_ns + edge.at_ns)))
        return samples

    def stop(self) -> None:
        """Watches no more; never raises."""
        try:
            self._reconfigure(Flag(0))
        except AdapterError:
            return

    def _reconfigure(self, edges: Flag) -> None:
        try:
            self._line.configure(self._spec.flags | edges, debounce_us=round(self._spec.debounce_ms * 1000))
        except OSError as err:
            raise AdapterDisconnected(f"{self._channel}: the edges cannot be watched: {err.strerror}") from err


class Lines:
    """The declared lines of one adapter. Blocking; every call comes from one thread."""

    def __init__(self, root: str, specs: Mapping[str, LineSpec], clock: Clock, ioctl: Ioctl = fcntl.ioctl) -> None:
        self._root, self._ioctl, self._clock = root, ioctl, clock
        self._specs = {_PREFIX + name: spec for name, spec in specs.items()}
        self._lines: dict[str, Line] = {}
        self._places: dict[str, Place] = {}
        self.counters: dict[str, int] = {}

    def open(self) -> None:
        """Takes every line or none. Raises AdapterDisconnected for what may come yet, AdapterError for what may not be."""
        if not self._specs:
            return
        found, closed = chips(self._root, self._ioctl)
        if closed and not found:
            raise AdapterError(f"{closed[0]} may not be opened: add this user to the group that owns it (often `gpio`) and log in again")
        try:
            for channel, spec in self._specs.items():
                self._lines[channel] = self._take(channel, spec, found)
        except AdapterError:
            self.close()
            raise

    def close(self) -> None:
        """Gives every line back; twice is fine."""
        lines, self._lines = self._lines, {}
        for channel, line in lines.items():
            if self._specs[channel].on_close == "return":
                try:
                    line.configure(Flag.INPUT)
                except OSError:
                    self.counters["returns_failed"] = self.counters.get("returns_failed", 0) + 1
            line.close()

    def channels(self) -> list[ChannelInfo]:
        """The lines that are held."""
        return [self._info(channel, self._specs[channel]) for channel in self._lines]

    def feeds(self) -> dict[str, InputFeed]:
        """One per input that is streamed."""
        return {
            channel: InputFeed(channel, self._specs[channel], line, self._clock, self.counters)
            for channel, line in self._lines.items()
            if self._specs[channel].watched
        }

    def find(self, text: str, found: list[Chip]) -> Place:
        """Where the line of that name is; boards with names of their own know better. Raises as `find_line`."""
        return find_line(text, found, self._ioctl)

    def discover(self) -> list[ChannelInfo]:
        """The inputs that are read when asked."""
        return [info for info in self.channels() if info.kind is ChannelKind.SAMPLED]

    def read(self, channels: Collection[str]) -> Values:
        values: Values = {}
        for channel in channels:
            try:
                values[channel] = float(self._held(channel).get())
            except AdapterDisconnected:
                raise
            except AdapterError:
                continue
        return values

    def set(self, channel: str, state: str) -> None:
        """Raises AdapterError for an unknown state or a refusal, AdapterDisconnected when the chip is gone."""
        if state not in STATES:
            raise AdapterError(f"{channel}: expected `on` or `off`, got `{state}`")
        self._held(channel).set(state == "on")

    def get(self, channel: str) -> str | None:
        """The level that the kernel reports."""
        return STATES[self._held(channel).get()]

    # -- steps --------------------------------------------------------------------------------------------------------------

    def _held(self, channel: str) -> Line:
        if channel not in self._lines:
            raise AdapterDisconnected(f"{channel}: the line is not held")
        return self._lines[channel]

    def _take(self, channel: str, spec: LineSpec, found: list[Chip]) -> Line:
        place = self.find(spec.line, found)
        self._places[channel] = place
        try:
            before = line_state(place.chip.path, place.offset, self._ioctl)
            line = Line(place.chip.path, place.offset, f"{CONSUMER}{channel.removeprefix(_PREFIX)}", self._ioctl)
        except OSError as err:
            raise self._refusal(channel, spec, place, err) from err
        try:
            line.configure(
                spec.flags, level=_level(spec, before.flags, line), debounce_us=round(spec.debounce_ms * 1000 * (spec.direction == "input"))
            )
        except OSError as err:
            line.close()
            raise AdapterError(
                f"{channel}: {place.chip.name}:{place.offset} cannot be set up as asked ({err.strerror}); not every chip has bias and drive"
            ) from err
        return line

    def _refusal(self, channel: str, spec: LineSpec, place: Place, err: OSError) -> AdapterError:
        where = f"{channel}: line `{spec.line}` ({place.chip.name}:{place.offset})"
        if err.errno == errno.EBUSY:
            try:
                holder = line_state(place.chip.path, place.offset, self._ioctl).consumer
            except OSError:
                holder = ""
            return AdapterDisconnected(f"{where} is in use by `{holder or 'another program'}`: release it there, or name another line")
        if err.errno in (errno.EACCES, errno.EPERM):
            return AdapterError(f"{where} may not be opened: add this user to the group that owns {place.chip.path}")
        return AdapterDisconnected(f"{where} cannot be had: {err.strerror}")

    def _info(self, channel: str, spec: LineSpec) -> ChannelInfo:
        place = self._places[channel]
        words = f"GPIO {spec.direction} {place.chip.label}:{place.offset}{', active low' if spec.active_low else ''}"
        if spec.direction == "output":
            return ChannelInfo(channel, ChannelKind.ACTUATOR, states=STATES, description=words)
        kind = ChannelKind.STREAMING if spec.watched else ChannelKind.SAMPLED
        return ChannelInfo(channel, kind, "bool", minimum=0.0, maximum=1.0, description=words)


def _level(spec: LineSpec, before: Flag, line: Line) -> bool:
    """The logical level at which an output begins; the line is still as it was found."""
    if spec.initial != "keep":
        return spec.initial == "on"
    if spec.direction == "input" or not before & Flag.OUTPUT:
        return False
    return line.get() ^ spec.active_low
