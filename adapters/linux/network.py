"""Traffic, errors and carrier of the network interfaces."""

from __future__ import annotations

import errno
from collections.abc import Collection
from contextlib import suppress

from adapters.linux.probe import Count, Values, read_attribute, read_proc, sampled
from edge_runtime.types import ChannelInfo


class Network:
    """Totals from /proc/net/dev in one read, the carrier from /sys/class/net (Documentation/ABI/testing/sysfs-class-net)."""

    _WORDS = {  # noqa: RUF012 - never changed
        "rx": ("B/s", "bytes received"),
        "tx": ("B/s", "bytes sent"),
        "errors": ("1/s", "packets received or sent with an error"),
        "drops": ("1/s", "packets dropped in either direction"),
        "carrier": ("bool", "cable in, or associated"),
    }

    def __init__(self, root: str) -> None:
        self._table = f"{root}/proc/net/dev"
        self._classes = f"{root}/sys/class/net"

    def discover(self) -> list[ChannelInfo]:
        totals = self._totals()
        carriers = self._carriers(dict.fromkeys(name.split("/")[1] for name in totals))
        return [sampled(name, *self._WORDS[name.rpartition("/")[2]]) for name in sorted({**totals, **carriers})]

    def read(self, channels: Collection[str]) -> Values:
        carriers = [channel.split("/")[1] for channel in channels if channel.endswith("/carrier")]
        totals = self._totals() if len(carriers) < len(channels) else {}
        return totals | self._carriers(carriers)

    def _totals(self) -> Values:
        values: Values = {}
        with suppress(OSError, ValueError, IndexError):
            for line in read_proc(self._table).splitlines()[2:]:
                interface, _, rest = line.rpartition(":")  # an alias such as eth0:1 has a colon too
                rx, _, rx_errors, rx_drops, _, _, _, _, tx, _, tx_errors, tx_drops, *_ = map(float, rest.split())
                name = f"net/{interface.strip()}"
                values |= {f"{name}/rx": Count(rx), f"{name}/tx": Count(tx)}
                values |= {f"{name}/errors": Count(rx_errors + tx_errors), f"{name}/drops": Count(rx_drops + tx_drops)}
        return values

    def _carriers(self, interfaces: Collection[str]) -> Values:
        values: Values = {}
        for interface in interfaces:
            try:
                values[f"net/{interface}/carrier"] = float(read_attribute(f"{self._classes}/{interface}/carrier") == "1")
            except OSError as err:
                if err.errno == errno.EINVAL:  # the interface is down
                    values[f"net/{interface}/carrier"] = 0.0
        return values
