"""The deployment: the complete desired document that a gateway runs. Types only; `load` reads it, `check` judges it.

It speaks logical names alone, so that one deployment serves a mixed fleet; the gateway file binds those names to hardware.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$", description="letters, digits and _; starts with a letter")]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=31_536_000)]
Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Digest = Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}$")]


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class SensorSpec(_Document, frozen=True, kw_only=True):
    """A logical channel. `rate_hz` is the sample rate (inside blocks, for a streaming channel)."""

    unit: str = ""
    rate_hz: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] = 1.0
    on_stale: Literal["unknown", "hold"] = "unknown"
    stale_after_s: Seconds | None = None  # default: ten periods, at least 1 s
    minimum: float | None = None  # outside: quality UNCERTAIN
    maximum: float | None = None


class CanarySpec(_Document, frozen=True, kw_only=True):
    """A second model beside the first, on a share of the windows: in shadow the first still answers, in a split the second does."""

    digest: Digest
    percent: Percent | None = None  # of the windows; default: all in shadow, 20 in a split
    mode: Literal["shadow", "split"] = "shadow"
    max_divergence: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.3  # share of answers that may differ in the probation; 1: not judged

    @property
    def share(self) -> float:
        """Percent of the windows."""
        return self.percent if self.percent is not None else (100.0 if self.mode == "shadow" else 20.0)


class ModelSpec(_Document, frozen=True, kw_only=True):
    """A model by digest from the local store, or by path relative to the document (local use), or `zoo:NAME`."""

    digest: Digest | None = None
    path: str | None = None
    backend: str | None = None  # default: the one backend registered for the suffix
    labels: tuple[str, ...] = ()
    slo_ms: Annotated[float, msgspec.Meta(gt=0)] = 100.0
    priority: Literal["low", "normal", "high"] = "normal"
    threads: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    canary: CanarySpec | None = None
    providers: tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=100)], ...] = ()  # in order of choice; default: the CPU


class WindowSpec(_Document, frozen=True, kw_only=True):
    """Samples per inference and samples between two inferences."""

    size: Annotated[int, msgspec.Meta(ge=1, le=1_048_576)]
    hop: Annotated[int, msgspec.Meta(ge=1, le=1_048_576)] | None = None  # default: size


class TriggerSpec(_Document, frozen=True, kw_only=True):
    """When a full window is inferred: every hop (default), while a condition holds, on a period, or when a rule fires."""

    kind: Literal["window", "threshold", "schedule", "event"] = "window"
    when: str = ""  # threshold: a rule condition over facts, such as "rms > 0.5 m/s2"
    every_s: Seconds | None = None  # schedule
    event: str = ""  # event: a rule's name, at the moment it fires


class PipelineSpec(_Document, frozen=True, kw_only=True):
    """Channels to a window to a model to facts named after `output`."""

    input: tuple[Name, ...]
    window: WindowSpec
    model: Name | None = None  # None: the pipeline only computes features as facts
    output: Name
    preprocess: tuple[str, ...] = ()
    trigger: TriggerSpec = TriggerSpec()


class RuleSpec(_Document, frozen=True, kw_only=True):
    """`when` becomes true -> `then`, held until `until` (default: `when` is no longer true)."""

    rule: Name
    when: str
    then: dict[str, str | tuple[str, ...]] = {}  # verb -> actuator(s): {close: valve1}; {set: "speed=30"}
    until: str | None = None
    priority: Annotated[int, msgspec.Meta(ge=0, le=100)] = 50
    note: str = ""  # the message for people


class ActuatorSpec(_Document, frozen=True, kw_only=True):
    """`safe_state` holds whenever no lease does. `states` empty: those that the hardware names."""

    safe_state: str
    lease_s: Seconds = 30.0
    states: tuple[str, ...] = ()
    min_interval_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # between two changes, except to the safe state


class TelemetrySpec(_Document, frozen=True, kw_only=True):
    """What goes to the controller. Decisions, actions and notices always go.

    `none` nothing more, `results` and inferences, `scalars` and scalar readings, `all` and blocks.
    """

    mode: Literal["none", "results", "scalars", "all"] = "results"
    max_bytes_per_day: Annotated[int, msgspec.Meta(ge=0)] | None = None


class SyncSpec(_Document, frozen=True, kw_only=True):
    telemetry: TelemetrySpec = TelemetrySpec()


class HealthSpec(_Document, frozen=True, kw_only=True):
    """Gate of the probation after a change."""

    probation_s: Annotated[float, msgspec.Meta(ge=0, le=31_536_000)] = 60.0  # 0: confirmed as soon as it has loaded
    max_p99_ms: Annotated[float, msgspec.Meta(gt=0)] = 1000.0
    max_error_rate: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.01
    max_drift: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.3  # share of answers that may differ from before; 1: not judged


class Deployment(_Document, frozen=True, kw_only=True):
    """The whole desired state of a gateway."""

    schema: Literal[1]
    revision: Annotated[int, msgspec.Meta(ge=0)] = 0
    sensors: dict[Name, SensorSpec] = {}
    models: dict[Name, ModelSpec] = {}
    pipelines: dict[Name, PipelineSpec] = {}
    rules: tuple[RuleSpec, ...] = ()
    actuators: dict[Name, ActuatorSpec] = {}
    flags: dict[Name, bool] = {}  # facts that people set, such as `maintenance`, with their values at start
    sync: SyncSpec = SyncSpec()
    health: HealthSpec = HealthSpec()
