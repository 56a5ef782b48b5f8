"""Every interface the core needs from outside. Outsiders implement them; the core never imports an implementation.

One Protocol per capability: an adapter implements `PlatformAdapter` and whichever of `SampledSensors`, `StreamingSensors`,
`Actuators`, `HotPlug`, `FaultInjection` its hardware has; the runtime asks with `isinstance`. All methods run on the event
loop: a driver that blocks uses a worker thread of its own.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from edge_runtime.bundle import Bundle
from edge_runtime.clock import Clock
from edge_runtime.types import (
    Array,
    ChannelInfo,
    DesiredDeployment,
    Finding,
    Health,
    LinkSettings,
    Priority,
    ProbeReport,
    ReportedDeployment,
    Sample,
    ServerSettings,
    TensorInfo,
)

SampleSink = Callable[[Sample], None]
"""Takes one sample. Called on the event loop; returns at once; never raises."""


@runtime_checkable
class PlatformAdapter(Protocol):
    """One piece of hardware (or recording, or simulation) that the gateway senses or acts through.

    Built by its factory with `(name, options, clock)`; does nothing until `open`. Before `open` and after `close` every call that
    needs the device raises AdapterError, and `health` is not ok. After AdapterDisconnected from any call the runtime calls `close`,
    waits with back-off and calls `open` again.
    """

    async def open(self) -> None:
        """Makes the hardware ready. Raises AdapterError for good, AdapterDisconnected to be tried again."""
        ...

    async def close(self) -> None:
        """Lets go of everything. Safe to call twice and after a failed `open`. Leaves actuators as they are."""
        ...

    def channels(self) -> Sequence[ChannelInfo]:
        """The physical channels that really exist now; never an invented one. Valid between `open` and `close`."""
        ...

    def health(self) -> Health:
        """State and counters; cheap, never raises."""
        ...


@runtime_checkable
class SampledSensors(Protocol):
    """Channels that are read when asked; the runtime owns the schedule."""

    async def read(self, channels: Sequence[str]) -> Sequence[Sample]:
        """One sample per channel asked, in that order; a channel that cannot be read now comes with value None and BAD.

        Raises AdapterDisconnected when the whole device is gone.
        """
        ...


@runtime_checkable
class StreamingSensors(Protocol):
    """Channels that speak by themselves, in scalars or blocks."""

    async def stream(self, channels: Sequence[str], sink: SampleSink) -> None:
        """Feeds `sink` until cancelled. Returns only when the source has ended for good (a recording at its end).

        Raises AdapterDisconnected when the device is gone.
        """
        ...


@runtime_checkable
class Actuators(Protocol):
    """Outputs that change the world. Leases, priorities and safe states are the runtime's; the adapter only does."""

    async def actuate(self, channel: str, state: str) -> None:
        """Brings `channel` to `state` (one of the channel's `states`, or a number as text). Idempotent.

        Raises AdapterError when the device refused, AdapterDisconnected when it is gone.
        """
        ...

    async def actuator_state(self, channel: str) -> str | None:
        """The state as the device reports it, or None where it cannot tell."""
        ...


@runtime_checkable
class HotPlug(Protocol):
    """Hardware whose channels come and go while open."""

    def changes(self) -> AsyncIterator[Sequence[ChannelInfo]]:
        """The new complete list of channels, each time it changes."""
        ...


@runtime_checkable
class FaultInjection(Protocol):
    """Simulations and recordings that can be told to misbehave."""

    def inject(self, fault: str, severity: float) -> None:
        """Starts (severity > 0) or ends (0) a named fault. Raises InputError naming the known faults."""
        ...


AdapterFactory = Callable[[str, Mapping[str, Any], Clock], PlatformAdapter]
"""`(instance name, options of the gateway file, clock)`. Raises ConfigError-style InputError on unknown or wrong options.

Entry point group `edge_runtime.adapters`; the entry point's name is the gateway file's `driver`.
"""


Examination = Callable[[str], Iterable[Finding]]
"""What `doctor` can tell of hardware: looks below the root it is given (`""` is this machine), changes nothing, raises nothing.

Entry point group `edge_runtime.examinations`; they are asked in the order of their names.
"""


class LoadedModel(Protocol):
    """A model ready to run. Not thread-safe: one caller at a time."""

    @property
    def inputs(self) -> tuple[TensorInfo, ...]: ...

    @property
    def outputs(self) -> tuple[TensorInfo, ...]: ...

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """One inference. `inputs` in the order of `self.inputs`.

        A float array given for a quantized input is quantized by its scale and zero point (round half to even, saturating);
        an array of the stored dtype is passed as it is. Quantized outputs come back dequantized to float32; others unchanged.
        Raises ModelRefused(WRONG_SHAPE | WRONG_DTYPE) before the runtime sees a misfit, ModelRefused(RUN_FAILED) from the runtime.
        """
        ...

    def close(self) -> None: ...


class ModelBackend(Protocol):
    """One inference runtime. Entry point group `edge_runtime.model_backends`; the name is the `--backend` choice."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """File suffixes it opens, such as (".onnx",)."""
        ...

    def load(self, path: Path, threads: int = 1) -> LoadedModel:
        """Parses and prepares one model. Raises ModelRefused with a named reason, MissingDependency with the install command."""
        ...

    async def probe(self, path: Path, *, deadline_s: float = 20.0, memory_mb: int = 1024) -> ProbeReport:
        """Loads and runs the model in a child process, so that a model that aborts, hangs or eats memory harms nobody.

        `memory_mb` bounds what the model may take on top of the bare runtime. Raises what `load` and `run` raise, and
        ModelRefused(PROBE_CRASHED | PROBE_TIMEOUT | PROBE_MEMORY). Costs about 0.3 s: keep the report by the model's digest.
        """
        ...


@runtime_checkable
class ChoosesProviders(Protocol):
    """A backend that computes on more than one execution provider: the CPU, a GPU, an accelerator."""

    def execution_providers(self) -> tuple[str, ...]:
        """Those of the installed library, best first. Raises MissingDependency."""
        ...

    def with_providers(self, names: Sequence[str]) -> ModelBackend:
        """The same backend on these, tried in order for each node. Raises InputError for one that is not here, naming those that are."""
        ...


@runtime_checkable
class KeepsOptimised(Protocol):
    """A backend that can keep what it made of a model on this machine, so that the next start is quicker."""

    def with_cache(self, folder: Path, max_bytes: int) -> ModelBackend:
        """The same backend, keeping at most `max_bytes` in `folder`. A folder that is lost or full costs time only."""
        ...


class ModelFolder(Protocol):
    """The bundles on this gateway's disk, by digest. Entry point group `edge_runtime.model_stores`, built with its folder. May block."""

    def install(self, source: Path, *, max_bytes: int | None = None, keep: Collection[str] = ()) -> Bundle:
        """A bundle's folder or tar, verified and copied whole or not at all; one that is there already is left as it is.

        With `max_bytes`, what neither a name uses nor `keep` holds is cleared away to make room. Raises ModelRefused, StoreFull.
        """
        ...

    def get(self, digest: str) -> Bundle:
        """Raises ModelRefused(MISSING), InputError for what is no digest."""
        ...

    def has(self, digest: str) -> bool: ...

    def use(self, name: str, digest: str) -> None:
        """From now on `name` serves `digest`; what it served becomes its previous one. Raises ModelRefused(MISSING)."""
        ...

    def release(self, name: str) -> None:
        """`name` serves nothing more: neither of its two bundles is held by it."""
        ...

    def collect(self, max_bytes: int, keep: Collection[str] = ()) -> list[str]:
        """Deletes the oldest of what neither a name uses nor `keep` holds until the rest fits; returns the digests deleted."""
        ...


class OutboxBatch(Protocol):
    """One durable batch of records, opaque to whoever carries it (`edge_runtime.records` encodes it)."""

    @property
    def boot(self) -> str: ...

    @property
    def first_seq(self) -> int:
        """Names the batch within its boot: no two batches of a boot have the same first_seq."""
        ...

    @property
    def count(self) -> int: ...

    @property
    def data(self) -> bytes: ...


class Outbox(Protocol):
    """The durable queue to the controller, as a transport sees it. All methods run on the event loop."""

    async def peek(self, max_batches: int, after: int = 0) -> Sequence[tuple[int, OutboxBatch]]:
        """The next committed batches to send, best priority first then oldest, as (row id, batch), skipping ids in flight.

        `after` is not an order: it is 0, or the number of batches in flight that the caller already holds.
        """
        ...

    async def acknowledge(self, boot: str, first_seqs: Sequence[int]) -> int:
        """Deletes batches that the controller committed; returns how many records that were. Unknown ones are ignored."""
        ...

    def release(self, row_ids: Sequence[int]) -> None:
        """Hands batches in flight back (the link broke); they will be peeked again."""
        ...

    async def wait(self) -> None:
        """Returns when there is something to peek that is not in flight."""
        ...


@runtime_checkable
class PausableOutbox(Protocol):
    """An outbox whose low classes can rest while the others go on, such as when the day's byte budget is spent."""

    def hold_below(self, priority: Priority) -> None:
        """Until called again, `peek` and `wait` pass over batches of a lower class than `priority` (BULK: none is held)."""
        ...


MessageHandler = Callable[[str, bytes], None]
"""`(topic, payload)`, called on the event loop; never raises."""


class TransportSession(Protocol):
    """One live connection to a broker."""

    @property
    def max_inflight(self) -> int:
        """How many QoS 1 messages the broker takes unacknowledged (Receive Maximum of CONNACK)."""
        ...

    @property
    def max_packet_bytes(self) -> int:
        """Largest packet that the broker takes (Maximum Packet Size of CONNACK); a larger publish raises MessageTooLarge."""
        ...

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> None:
        """Returns when the broker has taken the message (PUBACK for QoS 1): no promise that anyone else has it.

        Raises TransportError when the link breaks first or the broker refuses.
        """
        ...

    async def subscribe(self, topic_filter: str, handler: MessageHandler, qos: int = 1) -> None:
        """Returns after SUBACK. A granted filter is no proof of permission. Raises TransportError."""
        ...

    async def closed(self) -> str:
        """Returns the reason when the connection has ended."""
        ...

    async def close(self) -> None:
        """Says goodbye (no will is sent). Safe to call twice."""
        ...


class SyncTransport(Protocol):
    """A way to a broker."""

    async def connect(self, will_topic: str, will_payload: bytes) -> TransportSession:
        """One attempt. Raises TransportError; the caller owns the back-off."""
        ...


class Uplink(Protocol):
    """The gateway's side of the link to its controller, whatever the transport."""

    @property
    def up(self) -> bool:
        """Whether the broker is reached now."""
        ...

    async def run(self) -> None:
        """Connects, carries the outbox, reconnects; ends only by cancellation."""
        ...

    def health(self) -> Health: ...


StateReport = Callable[[], Mapping[str, Any]]
"""What the gateway reports of itself now: `{"ledger": {...}, "status": {...}}`, plain values."""


class DeploymentHost(Protocol):
    """The gateway as the sync agent sees it: what it runs, and the door through which a verified deployment comes in.

    Everything here works without a network. Methods run on the event loop.
    """

    def reported(self) -> ReportedDeployment:
        """Read back from disk after every change, never from what was asked for."""
        ...

    def has_model(self, digest: str) -> bool:
        """Whether the local store holds this bundle."""
        ...

    async def install_model(self, archive: Path, digest: str) -> None:
        """Unpacks and verifies a fetched bundle into the store. Raises DeploymentRefused(MODEL_REFUSED | NO_SPACE), nothing left behind."""
        ...

    async def apply(self, desired: DesiredDeployment) -> ReportedDeployment:
        """Stages, checks, probes and switches; returns as probation begins (or ends, when it takes no time).

        Offered again with what already runs, it changes nothing. Raises DeploymentRefused, with what ran before still running.
        """
        ...

    async def deployment_changed(self) -> None:
        """Returns after the next change of what `reported` tells, once that is on disk."""
        ...


Document = Callable[[Mapping[str, str]], Any]
"""Takes a query; returns plain values. Raises InputError for a query that does not fit."""


class GatewayView(Protocol):
    """A running gateway as a server shows it to machines nearby. Nothing here changes anything."""

    def documents(self) -> Mapping[str, Document]:
        """By path, as the local API gives them; `/readings` and `/actuators` by name, or one of them with the query `name`."""
        ...

    def watch(self, changed: Callable[[str], None]) -> Callable[[], None]:
        """Calls `changed` with the path of what is new: `/decisions`, `/readings/NAME`, `/actuators/NAME`; returns its end."""
        ...


ServerFactory = Callable[[str, ServerSettings, Clock, GatewayView], PlatformAdapter]
"""`(instance name, settings, clock, view)`. Entry point group `edge_runtime.servers`. What is pushed to the server, it streams."""


UplinkFactory = Callable[[LinkSettings, Outbox, Clock, StateReport, Callable[[bool, str], None], DeploymentHost], Uplink]
"""`(settings, outbox, clock, state report, on_link(up, detail), host)`. Entry point group `edge_runtime.sync_transports`; the entry
point's name is the gateway file's `broker.transport`. Raises InputError on settings that cannot work."""


class CliCommand(Protocol):
    """One command of `edge-runtime`. Entry point group `edge_runtime.commands`; the class is built without arguments.

    `run` returns the exit code (0 done, 1 failed, 2 invalid input); InputError becomes 2 and EdgeRuntimeError 1 by itself.
    """

    summary: str
    example: str

    def configure(self, parser: ArgumentParser) -> None:
        """Adds the command's own arguments. Imports nothing heavy."""
        ...

    def run(self, args: Namespace) -> int: ...
