"""LEDs of the machine as actuators: /sys/class/leds (Documentation/leds/leds-class.rst). States: `on`, `off`, or a brightness."""

from __future__ import annotations

from pathlib import Path

from edge_runtime.errors import AdapterError
from edge_runtime.types import ChannelInfo, ChannelKind

_PREFIX = "led/"


class Leds:
    """The LEDs below one root. Blocking, but for a write to sysfs only."""

    def __init__(self, root: Path) -> None:
        self._root = root / "sys/class/leds"

    def channels(self) -> list[ChannelInfo]:
        """Every LED with a brightness."""
        folders = sorted(self._root.iterdir()) if self._root.is_dir() else []
        return [
            ChannelInfo(_PREFIX + folder.name, ChannelKind.ACTUATOR, states=("on", "off"), description="LED")
            for folder in folders
            if (folder / "brightness").exists()
        ]

    def set(self, channel: str, state: str) -> None:
        """Raises AdapterError for an unknown state or a refused write."""
        folder = self._folder(channel)
        try:
            most = int((folder / "max_brightness").read_text())
            value = {"on": most, "off": 0}[state] if state in ("on", "off") else int(state)
            if not 0 <= value <= most:
                raise ValueError(state)
            (folder / "brightness").write_text(f"{value}\n")
        except ValueError as err:
            raise AdapterError(f"{channel}: expected `on`, `off` or a brightness from 0, got `{state}`") from err
        except OSError as err:
            raise AdapterError(f"{channel}: cannot be set: {err.strerror}; the service needs write access to {folder}/brightness") from err

    def get(self, channel: str) -> str | None:
        """`on` at full brightness, `off` at 0, else the number; None when it cannot be read."""
        folder = self._folder(channel)
        try:
            value, most = (int((folder / name).read_text()) for name in ("brightness", "max_brightness"))
        except (OSError, ValueError):
            return None
        return {0: "off", most: "on"}.get(value, str(value))

    def _folder(self, channel: str) -> Path:
        return self._root / channel.removeprefix(_PREFIX)
