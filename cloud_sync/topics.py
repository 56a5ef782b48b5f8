"""The topic tree `fl/v1/{tenant}/g/{gateway}/`: `up/#` is written by that gateway only, `dn/#` by the controller only. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edge_runtime.errors import InputError

ROOT = "fl/v1"
ALL_UPLINKS = f"{ROOT}/+/g/+/up/#"
ALL_TELEMETRY = f"{ROOT}/+/g/+/up/tlm"
ALL_REPORTS = (f"{ROOT}/+/g/+/up/status", f"{ROOT}/+/g/+/up/state")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_UPLINK = re.compile(rf"{ROOT}/({_NAME.pattern})/g/({_NAME.pattern})/up/([A-Za-z0-9_./-]{{1,128}})")


@dataclass(frozen=True, slots=True)
class GatewayTopics:
    """Every topic of one gateway. Raises InputError when a name could be read as a wildcard or a level of its own."""

    tenant: str
    gateway: str

    def __post_init__(self) -> None:
        for field, name in (("tenant", self.tenant), ("gateway", self.gateway)):
            if not _NAME.fullmatch(name):
                raise InputError(f"{field}: expected up to 64 letters, digits, `_`, `.` or `-`, a letter or digit first; got {name!r}")

    @property
    def root(self) -> str:
        return f"{ROOT}/{self.tenant}/g/{self.gateway}"

    @property
    def telemetry(self) -> str:
        return f"{self.root}/up/tlm"

    @property
    def status(self) -> str:
        return f"{self.root}/up/status"

    @property
    def state(self) -> str:
        return f"{self.root}/up/state"

    @property
    def ack(self) -> str:
        return f"{self.root}/dn/ack"

    @property
    def desired(self) -> str:
        """The signed deployment, retained."""
        return f"{self.root}/dn/desired"

    @property
    def meta(self) -> str:
        """The newest timestamp metadata, retained."""
        return f"{self.root}/dn/meta"

    @property
    def blob_request(self) -> str:
        return f"{self.root}/up/blob/req"

    def blob(self, session: str) -> str:
        """Where the pieces of one download come."""
        return f"{self.root}/dn/blob/{session}"

    @property
    def command(self) -> str:
        return f"{self.root}/dn/cmd"


@dataclass(frozen=True, slots=True)
class Uplink:
    """Where an uplink message came from, as its topic tells. `leaf` is `tlm`, `status`, `state`..."""

    tenant: str
    gateway: str
    leaf: str


def parse_uplink(topic: str) -> Uplink:
    """The origin of a message under `up/`. Raises InputError for any other topic."""
    match = _UPLINK.fullmatch(topic)
    if match is None:
        raise InputError(f"expected a topic {ROOT}/<tenant>/g/<gateway>/up/..., got {topic[:200]!r}")
    return Uplink(match[1], match[2], match[3])


def matches(topic_filter: str, topic: str) -> bool:
    """Whether an MQTT filter (shared prefix allowed) selects a topic (MQTT 5.0, section 4.7)."""
    wanted = topic_filter.split("/")
    if wanted[0] == "$share":
        wanted = wanted[2:]
    levels = topic.split("/")
    if levels[0].startswith("$") and wanted[0] in ("+", "#"):
        return False
    for depth, level in enumerate(wanted):
        if level == "#":
            return True
        if depth >= len(levels) or level not in ("+", levels[depth]):
            return False
    return len(wanted) == len(levels)
