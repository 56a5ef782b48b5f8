"""Values that cross borders: frozen, with units in their names. No behaviour beyond small derivations."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Array = npt.NDArray[Any]


class Quality(IntEnum):
    """How far a reading can be trusted (the order is from best to worst)."""

    GOOD = 0
    UNCERTAIN = 1  # delivered late, out of order, interpolated or outside the sensor's range
    STALE = 2  # nothing new arrived within the channel's stale_after_s
    BAD = 3  # NaN, infinite, or the driver reported a fault; the value is None


class Priority(IntEnum):
    """Class of a record in the outbox; the lowest goes first when space runs out."""

    BULK = 0  # raw readings
    RESULT = 1  # inference results and scalar summaries
    EVENT = 2  # decisions, actions, notices: never evicted before the others


class Timestamp(msgspec.Struct, frozen=True, gc=False):
    """One instant on both clocks. `wall_err_ns` bounds the wall clock's error; -1 means unknown (never synchronised)."""

    mono_ns: int
    wall_ns: int
    wall_err_ns: int


class Sample(msgspec.Struct, frozen=True, gc=False):
    """What an adapter hands over: one scalar or one block of a physical channel.

    `value` is a scalar in the channel's unit, or None when the driver knows that it does not know.
    `block` is 1-D float32, evenly spaced at `rate_hz`, oldest first; then `value` is None.
    `wall_ns` is the source's own time of the (first) sample, or None when the source has no clock.
    """

    channel: str
    value: float | None = None
    block: FloatArray | None = None
    rate_hz: float = 0.0
    quality: Quality = Quality.GOOD
    wall_ns: int | None = None


class Reading(msgspec.Struct, frozen=True, gc=False):
    """A sample after ingest: numbered, timed, in the deployment's unit and under its logical name.

    `seq` rises by one per reading within a boot. For a block, `at` is the time of its last sample.
    """

    source: str
    channel: str
    seq: int
    at: Timestamp
    value: float | None
    unit: str
    quality: Quality = Quality.GOOD
    block: FloatArray | None = None
    rate_hz: float = 0.0
    source_wall_ns: int | None = None


class Inference(msgspec.Struct, frozen=True):
    """One run of one model on one window. `outputs` are dequantized float values by output name, flattened.

    `label` and `score` are set for classifiers: the arg-max class and its score in 0..1.
    """

    pipeline: str
    model: str
    digest: str
    at: Timestamp
    first_seq: int
    last_seq: int
    values: tuple[float, ...]
    label: str | None = None
    score: float | None = None
    latency_ns: int = 0
    quality: Quality = Quality.GOOD


class DecisionKind(StrEnum):
    """What a rule did."""

    FIRED = "fired"
    RELEASED = "released"


class Premise(msgspec.Struct, frozen=True):
    """One atom of a rule's condition as it stood when the rule changed: `temp > 80 degC` was true with 83.2 at seq 991."""

    text: str
    truth: bool | None
    value: float | bool | str | None = None
    seq: int = 0
    digest: str = ""  # of the model, when the value is an inference
    mono_ns: int = 0  # when the value arrived


class Decision(msgspec.Struct, frozen=True):
    """A rule that fired or was released, with its proof. `id` is unique over all boots: `<boot id>-<n>`."""

    id: str
    kind: DecisionKind
    rule: str
    at: Timestamp
    revision: str
    premises: tuple[Premise, ...] = ()
    text: str = ""
    reason: str = ""  # for RELEASED: `until`, `condition ended`, `rule removed`


class ActionOutcome(StrEnum):
    """How an actuation ended."""

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
    TIMED_OUT = "timed_out"


class Action(msgspec.Struct, frozen=True):
    """A command sent to an actuator, or refused, with its cause (`decision` id, or a reason such as `lease expired`)."""

    id: str
    actuator: str
    state: str
    at: Timestamp
    outcome: ActionOutcome
    cause: str
    decision: str = ""
    priority: int = 0
    lease_s: float = 0.0
    detail: str = ""


class Notice(msgspec.Struct, frozen=True):
    """Something about the gateway itself: `link_down`, `channel_stale`, `clock_step`, `store_full`..."""

    kind: str
    at: Timestamp
    subject: str = ""
    message: str = ""


class ChannelKind(StrEnum):
    """What a physical channel does."""

    SAMPLED = "sampled"
    STREAMING = "streaming"
    ACTUATOR = "actuator"


class ChannelInfo(msgspec.Struct, frozen=True):
    """A physical channel that really exists now. For a streaming channel `rate_hz` is the sample rate inside its blocks."""

    channel: str
    kind: ChannelKind
    unit: str = ""
    rate_hz: float = 0.0
    minimum: float | None = None
    maximum: float | None = None
    states: tuple[str, ...] = ()  # of an actuator
    description: str = ""


class Health(msgspec.Struct, frozen=True):
    """State of an adapter, backend or transport. `detail` is for people."""

    ok: bool
    detail: str = ""
    counters: dict[str, int] = {}


class Finding(msgspec.Struct, frozen=True):
    """One thing that `doctor` looked at. A warning is what a gateway can do without; `remedy` is what to do about it."""

    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


class TensorInfo(msgspec.Struct, frozen=True):
    """One input or output of a model. `shape` has -1 for free dimensions.

    With a `scale`, real = scale * (stored - zero_point) (per tensor; TFLite and ONNX QDQ convention). With `axis_scales`
    the scale and zero point differ along `axis`, and `scale` is 0.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float = 0.0
    zero_point: int = 0
    axis_scales: tuple[float, ...] = ()
    axis_zero_points: tuple[int, ...] = ()
    axis: int = 0


class ProbeReport(msgspec.Struct, frozen=True):
    """What a model did when it was loaded and run in a process of its own.

    `run_ms` is the median of `runs` runs after one warm-up on zeros (free dimensions taken as 1). `runs` is 0 when the model
    has free dimensions beyond the first and does not run with them at 1. `rss_mb` is the most the model added to the process.
    `golden_difference` is the largest absolute difference over `golden_runs` golden runs of the bundle; None when none were made.
    """

    backend: str
    load_ms: float
    run_ms: float
    runs: int
    rss_mb: float
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    golden_runs: int = 0
    golden_difference: float | None = None


class DesiredDeployment(msgspec.Struct, frozen=True):
    """A deployment that the controller wants here, after its signatures were verified. `document` is its text, as it was signed.

    `models` are the digests of the bundles that it names, each of them signed offline. `digest` is `sha256:<hex>` of the document.
    """

    revision: int
    digest: str
    document: bytes
    expires_wall_ns: int
    models: tuple[str, ...] = ()


class DeploymentPhase(StrEnum):
    """Where a deployment stands on this gateway."""

    FACTORY = "factory"  # what the gateway file names; nothing was pushed yet
    STAGING = "staging"
    PROBATION = "probation"
    CONFIRMED = "confirmed"
    REVERTED = "reverted"
    REFUSED = "refused"


class ReportedDeployment(msgspec.Struct, frozen=True, kw_only=True):
    """What this gateway runs, read back from its disk, and what became of the last revision that it was offered.

    `running_*` is what decides now. `revision`, `digest`, `phase` and `reason` are of the last one offered.
    """

    running_revision: int
    running_digest: str
    slot: str  # factory, good or candidate
    revision: int
    digest: str
    phase: DeploymentPhase
    reason: str = ""
    message: str = ""
    models: dict[str, str] = {}  # name: digest, as served now
    quarantined: tuple[str, ...] = ()


class LinkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the controller's broker is and as whom to speak to it. Paths are absolute."""

    host: str
    port: int
    tenant: str
    gateway: str
    boot: str
    version: str
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    username: str | None = None
    password: str | None = None
    keepalive_s: int = 30
    protocol: str = "auto"
    reconnect_max_s: float = 60.0
    max_bytes_per_day: int = 0  # 0: no limit
    state_dir: str = ""  # where the sync agent keeps the trust metadata and what it is fetching
    trust_root: str | None = None  # the first root metadata; None: pushed deployments are not taken
    controller_url: str | None = None  # https://host:port of the controller's API, for renewal and large downloads
    controller_ca: str | None = None


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where a server for machines nearby listens, and what may be pushed to it."""

    host: str
    port: int
    pushed: tuple[ChannelInfo, ...] = ()  # streaming channels
    max_observers: int = 64
    notify_interval_s: float = 1.0  # least time between two notifications of one resource
