"""gpiozero's devices over our lines: `GPIOZERO_PIN_FACTORY=edge` lets a user's HAT code run on any kernel with GPIO character devices.

Digital pins, pulls, edges and the kernel's debounce. It has no PWM: the character device has none. Only gpiozero imports this module.
"""

from __future__ import annotations

import errno
import fcntl
import os
import selectors
import threading
import time
from typing import Any

from gpiozero.exc import GPIOPinInUse, PinInvalidEdges, PinInvalidFunction, PinInvalidPull, PinPWMUnsupported, PinSetInput
from gpiozero.pins.pi import PiFactory, PiPin

from adapters.linux.gpio_uapi import Flag, Ioctl, Line
from adapters.linux.lines import chips, find_line
from adapters.raspberry_pi.board import require
from edge_runtime.errors import AdapterDisconnected

CONSUMER = "edge-gpiozero"

_PULLS = {"up": Flag.BIAS_PULL_UP, "down": Flag.BIAS_PULL_DOWN, "floating": Flag.BIAS_DISABLED}
_EDGES = {"both": Flag.EDGE_RISING | Flag.EDGE_FALLING, "rising": Flag.EDGE_RISING, "falling": Flag.EDGE_FALLING, "none": Flag(0)}


class LinePinFactory(PiFactory):  # type: ignore[misc]  # gpiozero has no types
    """The header of the Raspberry Pi below `root`. Raises AdapterError on other boards."""

    def __init__(self, root: str = "", ioctl: Ioctl = fcntl.ioctl) -> None:
        super().__init__()
        self.pin_class = LinePin
        self.board = require(root, "gpiozero")
        self._chips, _ = chips(root, ioctl)
        self._ioctl = ioctl

    def ticks(self) -> float:
        """Seconds of the clock that edges are stamped with."""
        return time.monotonic()

    def ticks_diff(self, later: float, earlier: float) -> float:
        return later - earlier

    def line(self, number: int) -> Line:
        """One line of the header, held. Raises GPIOPinInUse, AdapterDisconnected."""
        place = find_line(f"{self.board.header_chip}:{number}", self._chips, self._ioctl)
        try:
            return Line(place.chip.path, place.offset, CONSUMER, self._ioctl)
        except OSError as err:
            if err.errno == errno.EBUSY:
                raise GPIOPinInUse(f"GPIO{number} is in use by another program") from err
            raise AdapterDisconnected(f"GPIO{number} cannot be had: {err.strerror}") from err

    def _get_revision(self) -> int:
        return self.board.revision


class LinePin(PiPin):  # type: ignore[misc]  # gpiozero has no types
    """One pin; an input with the board's own pull until it is told otherwise."""

    def __init__(self, factory: LinePinFactory, info: Any) -> None:
        super().__init__(factory, info)
        self._output = False
        self._pull = info.pull or "floating"
        self._bounce: float | None = None
        self._edges = "both"
        self._watch: _Watch | None = None
        self._line = factory.line(self._number)
        self._configure()

    def close(self) -> None:
        """An input without edges again; twice is fine."""
        if self._line.fd >= 0:
            self.when_changed = None
            self._output, self._pull = False, self._info.pull or "floating"
            self._configure()
            self._line.close()

    def _configure(self, level: bool = False) -> None:
        if self._output:
            self._line.configure(Flag.OUTPUT, level=level)
            return
        edges = _EDGES[self._edges] if self._watch is not None else Flag(0)
        self._line.configure(Flag.INPUT | _PULLS[self._pull] | edges, debounce_us=round((self._bounce or 0.0) * 1e6))

    def _get_function(self) -> str:
        return "output" if self._output else "input"

    def _set_function(self, value: str) -> None:
        if value not in ("input", "output"):
            raise PinInvalidFunction(f"expected `input` or `output` for {self!r}, got `{value}`")
        level = self._line.get()
        self._output = value == "output"
        self._configure(level)

    def output_with_state(self, state: int) -> None:
        self._output = True
        self._configure(bool(state))

    def _get_state(self) -> int:
        return int(self._line.get())

    def _set_state(self, value: int) -> None:
        if not self._output:
            raise PinSetInput(f"cannot set {self!r}: it is an input")
        self._line.set(bool(value))

    def _get_pull(self) -> str:
        return str(self._pull)

    def _set_pull(self, value: str) -> None:
        if value not in _PULLS or self._output:
            raise PinInvalidPull(f"expected one of {', '.join(_PULLS)} for the input {self!r}, got `{value}`")
        self._pull = value
        self._configure()

    def _get_frequency(self) -> None:
        return None

    def _set_frequency(self, value: float | None) -> None:
        if value is not None:
            raise PinPWMUnsupported(f"no PWM on {self!r} through the GPIO character device")

    def _get_bounce(self) -> float | None:
        return self._bounce

    def _set_bounce(self, value: float | None) -> None:
        self._bounce = value
        self._configure()

    def _get_edges(self) -> str:
        return self._edges

    def _set_edges(self, value: str) -> None:
        if value not in _EDGES:
            raise PinInvalidEdges(f"expected one of {', '.join(_EDGES)} for {self!r}, got `{value}`")
        self._edges = value
        self._configure()

    def _enable_event_detect(self) -> None:
        self._watch = _Watch(self)
        self._configure()
        self._watch.start()

    def _disable_event_detect(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop()
            self._configure()


class _Watch(threading.Thread):
    """Waits for the edges of one pin."""

    def __init__(self, pin: LinePin) -> None:
        super().__init__(name=f"edges-{pin!r}", daemon=True)
        self._pin = pin
        self._ended = os.eventfd(0)

    def run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._pin._line.fd, selectors.EVENT_READ, True)
            selector.register(self._ended, selectors.EVENT_READ, False)
            while all(key.data for key, _ in selector.select()):
                try:
                    edges = self._pin._line.edges()
                except AdapterDisconnected:
                    break
                for edge in edges:
                    self._pin._call_when_changed(edge.at_ns / 1e9, int(edge.rising))
        os.close(self._ended)

    def stop(self) -> None:
        if self.is_alive():
            os.eventfd_write(self._ended, 1)
            if threading.current_thread() is not self:
                self.join()
