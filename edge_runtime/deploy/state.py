"""What a gateway remembers of its deployments, and every move that it may make. Pure values: no clock, no disk.

A revision only rises. What was taken back is quarantined by its digest and by its content, so that the same document under another
revision number is not tried again.
"""

from __future__ import annotations

import hashlib
from enum import Enum

import msgspec

from edge_runtime.config.deployment import Deployment
from edge_runtime.errors import DeploymentReason, DeploymentRefused
from edge_runtime.types import DeploymentPhase, DesiredDeployment

MAX_STARTS = 3  # this start without a confirmation reverts
MAX_QUARANTINED = 32
_MAX_MESSAGE = 1000

MOVES: dict[DeploymentPhase, frozenset[DeploymentPhase]] = {
    DeploymentPhase.FACTORY: frozenset({DeploymentPhase.STAGING}),
    DeploymentPhase.STAGING: frozenset({DeploymentPhase.PROBATION, DeploymentPhase.REFUSED}),
    DeploymentPhase.PROBATION: frozenset({DeploymentPhase.CONFIRMED, DeploymentPhase.REVERTED, DeploymentPhase.STAGING}),
    DeploymentPhase.CONFIRMED: frozenset({DeploymentPhase.STAGING}),
    DeploymentPhase.REVERTED: frozenset({DeploymentPhase.STAGING}),
    DeploymentPhase.REFUSED: frozenset({DeploymentPhase.STAGING}),
}
"""The life of one offer. STAGING is never on the disk: an offer that a power cut ends there comes again, for it is retained."""


class Kept(msgspec.Struct, frozen=True):
    """A deployment on the disk. `folder` is where, within the slots."""

    revision: int
    digest: str
    folder: str


class Offered(msgspec.Struct, frozen=True):
    """What became of the last revision offered."""

    revision: int
    digest: str
    phase: DeploymentPhase
    reason: str = ""
    message: str = ""


class Quarantined(msgspec.Struct, frozen=True):
    """A deployment that misbehaved here. `content` is `content_digest`, empty when it is not known."""

    digest: str
    content: str
    revision: int
    reason: str


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that must survive. The candidate runs when there is one, else the good one, else the factory's.

    `starts` are those since the switch that did not end in a graceful stop; `probation_ns` is running time, whatever the restarts.
    """

    good: Kept | None = None
    candidate: Kept | None = None
    high_water: int = 0
    offered: Offered | None = None
    starts: int = 0
    probation_ns: int = 0
    quarantine: tuple[Quarantined, ...] = ()

    @property
    def running(self) -> Kept | None:
        """What a start would run; None: the factory's."""
        return self.candidate or self.good


class Verdict(Enum):
    """What to do with an offer that is not refused."""

    TAKE = "take"
    SAME = "same"  # runs already, under this revision
    RENUMBER = "renumber"  # runs already, under a lower revision


def judge(state: State, desired: DesiredDeployment) -> Verdict:
    """By revision and digest alone. Raises DeploymentRefused(OLD_REVISION | QUARANTINED)."""
    if desired.revision < state.high_water:
        raise DeploymentRefused(
            DeploymentReason.OLD_REVISION, f"revision {desired.revision} is older than {state.high_water}, which was offered here before"
        )
    last = state.offered
    if last is not None and last.revision == desired.revision and last.digest != desired.digest:
        raise DeploymentRefused(
            DeploymentReason.OLD_REVISION, f"revision {desired.revision} was offered here with other content ({last.digest}); raise it"
        )
    refuse_quarantined(state, desired.digest)
    running = state.running
    if running is None or running.digest != desired.digest:
        return Verdict.TAKE
    return Verdict.SAME if running.revision == desired.revision else Verdict.RENUMBER


def refuse_quarantined(state: State, digest: str, content: str = "") -> None:
    """Raises DeploymentRefused(QUARANTINED) for what was taken back here, under whatever revision."""
    for bad in state.quarantine:
        if bad.digest == digest or (content and bad.content == content):
            raise DeploymentRefused(
                DeploymentReason.QUARANTINED,
                f"the same content was taken back here as revision {bad.revision} ({bad.reason}); change it and push a higher revision",
            )


def switched(state: State, kept: Kept) -> State:
    """A staged deployment becomes the candidate; one that was on probation is superseded."""
    offered = Offered(kept.revision, kept.digest, DeploymentPhase.PROBATION)
    return msgspec.structs.replace(
        state, candidate=kept, offered=offered, high_water=max(state.high_water, kept.revision), starts=0, probation_ns=0
    )


def renumbered(state: State, revision: int) -> State:
    """The same content under a higher revision: nothing else changes."""
    running = state.running
    assert running is not None
    kept = msgspec.structs.replace(running, revision=revision)
    phase = DeploymentPhase.PROBATION if state.candidate else DeploymentPhase.CONFIRMED
    state = msgspec.structs.replace(state, offered=Offered(revision, kept.digest, phase), high_water=revision)
    return msgspec.structs.replace(state, candidate=kept) if state.candidate else msgspec.structs.replace(state, good=kept)


def refused(state: State, desired: DesiredDeployment, reason: DeploymentReason, message: str) -> State:
    """What runs goes on. An offer that is older than the last one, or that repeats one taken back, leaves no trace."""
    last = state.offered
    if desired.revision < state.high_water or (last and last.revision == desired.revision and last.phase is not DeploymentPhase.REFUSED):
        return state
    offered = Offered(desired.revision, desired.digest, DeploymentPhase.REFUSED, reason.value, message[:_MAX_MESSAGE])
    return msgspec.structs.replace(state, offered=offered, high_water=desired.revision)


def confirmed(state: State) -> State:
    """The candidate is the good one from now on."""
    assert state.candidate is not None
    offered = _after(state, state.candidate, DeploymentPhase.CONFIRMED)
    return msgspec.structs.replace(state, good=state.candidate, candidate=None, offered=offered, starts=0, probation_ns=0)


def reverted(state: State, reason: DeploymentReason, message: str, *, content: str = "", quarantine: bool = True) -> State:
    """The candidate is gone; `quarantine`: for good, whatever revision brings it again."""
    bad = state.candidate
    assert bad is not None
    offered = _after(state, bad, DeploymentPhase.REVERTED, reason.value, message[:_MAX_MESSAGE])
    kept = state.quarantine
    if quarantine:
        kept = (*kept, Quarantined(bad.digest, content, bad.revision, reason.value))[-MAX_QUARANTINED:]
    return msgspec.structs.replace(state, candidate=None, offered=offered, quarantine=kept, starts=0, probation_ns=0)


def started(state: State) -> State:
    """One more start with a candidate. `state.starts` of MAX_STARTS means: revert before it is loaded."""
    return msgspec.structs.replace(state, starts=state.starts + 1) if state.candidate else state


def stopped(state: State, probation_ns: int) -> State:
    """A graceful stop is no crash: it takes its start back, and the time that was run counts."""
    return msgspec.structs.replace(state, starts=0, probation_ns=probation_ns) if state.candidate else state


def content_digest(deployment: Deployment) -> str:
    """`sha256:<hex>` of what a document says, whatever its layout, comments and revision."""
    plain = msgspec.json.encode(msgspec.structs.replace(deployment, revision=0), order="sorted")
    return "sha256:" + hashlib.sha256(plain).hexdigest()


def _after(state: State, kept: Kept, phase: DeploymentPhase, reason: str = "", message: str = "") -> Offered | None:
    """The outcome of `kept`, unless a later offer has been heard since."""
    last = state.offered
    if last is not None and last.revision != kept.revision:
        return last
    return Offered(kept.revision, kept.digest, phase, reason, message)


# -- as bytes -------------------------------------------------------------------------------------------------------------


class _Sealed(msgspec.Struct, frozen=True):
    v: int
    sha256: str
    state: msgspec.Raw


def seal(state: State) -> bytes:
    """The state as a document that tells whether it is whole."""
    body = msgspec.json.encode(state)
    return msgspec.json.encode(_Sealed(1, hashlib.sha256(body).hexdigest(), msgspec.Raw(body))) + b"\n"


def unseal(data: bytes) -> State | None:
    """The state, or None for what is damaged or of a later format."""
    try:
        sealed = msgspec.json.decode(data, type=_Sealed)
        body = bytes(sealed.state)
        if sealed.v != 1 or hashlib.sha256(body).hexdigest() != sealed.sha256:
            return None
        return msgspec.json.decode(body, type=State)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
