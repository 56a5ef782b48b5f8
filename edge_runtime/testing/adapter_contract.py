"""What every `PlatformAdapter` owes the runtime, as tests: derive from `AdapterContract` and pytest runs them on your adapter.

The tests ask for `edge_runtime.ports` and no more; a capability that the adapter has not is skipped. They need pytest-asyncio and
hardware (or its stand-in) that works, and they move every actuator through all of its states: use a bench, not a plant.
"""

# Protocols are handed around to be asked for with isinstance, never to be built.
# mypy: disable-error-code="type-abstract"

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from unittest import SkipTest

import numpy as np

from edge_runtime.clock import Clock, VirtualClock
from edge_runtime.errors import AdapterError, EdgeRuntimeError, InputError
from edge_runtime.ports import Actuators, FaultInjection, HotPlug, PlatformAdapter, SampledSensors, StreamingSensors
from edge_runtime.types import Array, ChannelInfo, ChannelKind, Health, Quality, Sample
from edge_runtime.units import parse_unit

MakeAdapter = Callable[[Mapping[str, Any], Clock], PlatformAdapter]
"""`(options over your own, clock)`: one more adapter, not open, built by the factory of the entry point."""

UNKNOWN = "no-such-thing"

_CAPABILITIES: dict[ChannelKind, type] = {
    ChannelKind.SAMPLED: SampledSensors,
    ChannelKind.STREAMING: StreamingSensors,
    ChannelKind.ACTUATOR: Actuators,
}
_POLL_S = 0.001
_ENOUGH_SAMPLES = 3
_CYCLES = 5

_Result = TypeVar("_Result")
_Capability = TypeVar("_Capability")


class AdapterContract:
    """The contract suite. A subclass named `Test...` provides a fixture `make_adapter` (a `MakeAdapter`) and sets what applies."""

    option: ClassVar[str] = ""
    """An option that the factory knows; a misspelling of it is to be answered with it. Empty: it has none."""

    absent: ClassVar[Mapping[str, Any] | None] = None
    """Options under which `open` fails, such as the address of a device that is not there. None: it cannot fail."""

    faults: ClassVar[tuple[str, ...]] = ()
    """The faults that `inject` knows, of an adapter with `FaultInjection`."""

    deadline_s: ClassVar[float] = 5.0
    """What a call may take before it counts as hanging."""

    step_s: ClassVar[float] = 0.05
    """How far the virtual clock is moved at each look while something is waited for."""

    # -- factory ----------------------------------------------------------------------------------------------------------

    async def test_unknown_options_are_refused_by_name(self, make_adapter: MakeAdapter) -> None:
        """InputError from the factory, with the wrong key and the nearest known one."""
        wrong = f"{self.option}x" if self.option else UNKNOWN
        message = _refusal(InputError, lambda: make_adapter({wrong: 1}, VirtualClock()), f"the unknown option `{wrong}`")
        assert wrong in message, f"the refusal does not name the wrong option `{wrong}`: {message}"
        assert f"`{self.option}`" in message or not self.option, f"the refusal of `{wrong}` does not name `{self.option}`: {message}"

    async def test_is_a_platform_adapter(self, make_adapter: MakeAdapter) -> None:
        adapter = make_adapter({}, VirtualClock())
        assert isinstance(adapter, PlatformAdapter), f"{type(adapter).__name__} lacks a method of PlatformAdapter"

    # -- life -------------------------------------------------------------------------------------------------------------

    async def test_does_nothing_before_open(self, make_adapter: MakeAdapter) -> None:
        """Building an adapter starts no task and no thread and holds no file."""
        traces = _Traces()
        adapter = make_adapter({}, VirtualClock())
        await self._expect_gone(traces, "after building it")
        _check_health(adapter)

    async def test_refuses_work_unless_open(self, make_adapter: MakeAdapter) -> None:
        """Before `open` and after `close` every call that needs the device raises AdapterError, for real channel names too."""
        async with self._opened(make_adapter) as (adapter, _):
            infos = tuple(adapter.channels())
        await self._expect_idle(adapter, infos, "after close")
        await self._expect_idle(make_adapter({}, VirtualClock()), infos, "before open")

    async def test_close_is_safe_at_any_time(self, make_adapter: MakeAdapter) -> None:
        """Before `open`, twice, and after use."""
        adapter = make_adapter({}, VirtualClock())
        await self._soon(adapter.close(), "close before open")
        await self._soon(adapter.open(), "open")
        for which in ("first", "second"):
            await self._soon(adapter.close(), f"{which} close")

    async def test_failed_open_says_so_and_can_be_closed(self, make_adapter: MakeAdapter) -> None:
        """AdapterError, nothing left behind after `close`, and the next `open` fails alike."""
        if self.absent is None:
            raise SkipTest("its `open` cannot fail")
        adapter = make_adapter(self.absent, VirtualClock())
        traces = _Traces()
        for which in ("first", "second"):
            await self._refused(adapter.open(), f"the {which} open under {dict(self.absent)}", AdapterError)
            _check_health(adapter)
            assert not adapter.health().ok, "health is ok after a failed open"
            await self._soon(adapter.close(), "close after a failed open")
            await self._soon(adapter.close(), "second close after a failed open")
        await self._expect_gone(traces, "after failed opens")

    async def test_opens_again_and_again_without_leaving_anything(self, make_adapter: MakeAdapter) -> None:
        """Same channels each time; no task, thread or file more than before."""
        clock = VirtualClock()
        adapter = make_adapter({}, clock)
        seen, traces = [], _Traces()
        for _ in range(_CYCLES):
            await self._soon(adapter.open(), "open")
            seen.append({info.channel for info in adapter.channels()})
            await self._use(adapter, clock)
            await self._soon(adapter.close(), "close")
        assert all(channels == seen[0] for channels in seen), f"the channels differ from opening to opening: {seen}"
        await self._expect_gone(traces, f"after {_CYCLES} times open and close")

    async def test_health_never_raises(self, make_adapter: MakeAdapter) -> None:
        """In any state; and an adapter is well when it is open, not before and not after."""
        adapter = make_adapter({}, VirtualClock())
        _check_health(adapter)
        assert not adapter.health().ok, "health is ok before open"
        await self._soon(adapter.open(), "open")
        _check_health(adapter)
        assert adapter.health().ok, f"open, but not well: {adapter.health().detail}"
        await self._soon(adapter.close(), "close")
        _check_health(adapter)
        assert not adapter.health().ok, "health is ok after close"

    # -- channels ---------------------------------------------------------------------------------------------------------

    async def test_channels_are_named_once_in_known_units(self, make_adapter: MakeAdapter) -> None:
        """At least one; units of `edge_runtime.units`; states for actuators only; a range that is one."""
        async with self._opened(make_adapter) as (adapter, _):
            infos = adapter.channels()
        assert infos, "no channel at all"
        names = [info.channel for info in infos]
        assert len(set(names)) == len(names), f"a channel is named twice: {sorted(names)}"
        for info in infos:
            _check_info(info)

    async def test_channels_stay_the_same(self, make_adapter: MakeAdapter) -> None:
        """Asked twice, with the device in use in between."""
        async with self._opened(make_adapter) as (adapter, clock):
            before = list(adapter.channels())
            await self._use(adapter, clock)
            assert isinstance(adapter, HotPlug) or list(adapter.channels()) == before, "the channels changed without HotPlug"

    async def test_every_kind_of_channel_has_its_capability(self, make_adapter: MakeAdapter) -> None:
        """A channel whose Protocol the class lacks would never be read or moved."""
        async with self._opened(make_adapter) as (adapter, _):
            for info in adapter.channels():
                capability = _CAPABILITIES[info.kind]
                assert isinstance(adapter, capability), f"{info.channel} is {info.kind.value}, but there is no {capability.__name__}"

    # -- sampled ----------------------------------------------------------------------------------------------------------

    async def test_read_gives_one_sample_per_channel_in_order(self, make_adapter: MakeAdapter) -> None:
        """Asked forwards, backwards, for one twice and for none; finite in its range, or None and not GOOD."""
        async with self._opened(make_adapter) as (adapter, _):
            sensors, infos = _capable(adapter, SampledSensors), _of_kind(adapter, ChannelKind.SAMPLED)
            names = list(infos)
            for asked in (names, names[::-1], names[:1] * 2, []):
                samples = await self._soon(sensors.read(asked), f"read of {len(asked)} channels")
                assert [sample.channel for sample in samples] == asked, f"asked {asked}, got {[s.channel for s in samples]}"
                for sample in samples:
                    _check_scalar(sample, infos[sample.channel])

    async def test_read_invents_no_channel(self, make_adapter: MakeAdapter) -> None:
        """InputError or AdapterError, or one sample of None and BAD."""
        async with self._opened(make_adapter) as (adapter, _):
            sensors = _capable(adapter, SampledSensors)
            with contextlib.suppress(InputError, AdapterError):
                for sample in await self._soon(sensors.read([UNKNOWN]), "read of an unknown channel"):
                    assert sample.value is None, f"invented a value for an unknown channel: {sample}"
                    assert sample.quality is Quality.BAD, f"an unknown channel came as {sample.quality.name}"

    async def test_a_read_that_is_cancelled_harms_nothing(self, make_adapter: MakeAdapter) -> None:
        """The runtime cancels a read that takes too long; the next one answers."""
        async with self._opened(make_adapter) as (adapter, _):
            sensors, names = _capable(adapter, SampledSensors), list(_of_kind(adapter, ChannelKind.SAMPLED))
            task = asyncio.ensure_future(sensors.read(names))
            await asyncio.sleep(0)
            await self._cancel(task, "read")
            samples = await self._soon(sensors.read(names), "read after a cancelled one")
            assert [sample.channel for sample in samples] == names

    # -- streaming --------------------------------------------------------------------------------------------------------

    async def test_stream_feeds_the_sink_until_cancelled(self, make_adapter: MakeAdapter) -> None:
        """On the event loop, with channels asked for; nothing comes and no task is left after the cancellation; twice over."""
        async with self._opened(make_adapter) as (adapter, clock):
            sensors, infos = _capable(adapter, StreamingSensors), _of_kind(adapter, ChannelKind.STREAMING)
            for asked in (list(infos), list(infos)[:1]):
                traces, sink = _Traces(), _Sink()
                task = asyncio.ensure_future(sensors.stream(asked, sink))
                await self._feed(task, sink, clock)
                await self._cancel(task, "stream")
                sink.check({channel: infos[channel] for channel in asked})
                await self._expect_silence(sink, clock)
                assert set(traces.tasks()) <= traces.before_tasks, "the stream left a task behind"

    async def test_streamed_blocks_are_never_written_again(self, make_adapter: MakeAdapter) -> None:
        """A sample is a value: a block that was handed over belongs to whoever took it."""
        async with self._opened(make_adapter) as (adapter, clock):
            sensors = _capable(adapter, StreamingSensors)
            sink = _Sink()
            task = asyncio.ensure_future(sensors.stream(list(_of_kind(adapter, ChannelKind.STREAMING)), sink))
            await self._feed(task, sink, clock)
            await self._cancel(task, "stream")
        for channel, block, copy in sink.blocks:
            assert np.array_equal(block, copy, equal_nan=True), f"a block of {channel} was written again after it was handed over"

    async def test_stream_refuses_an_unknown_channel(self, make_adapter: MakeAdapter) -> None:
        async with self._opened(make_adapter) as (adapter, _):
            sink = _Sink()
            await self._refused(_capable(adapter, StreamingSensors).stream([UNKNOWN], sink), "stream of an unknown channel")
            assert not sink.samples, f"invented samples of an unknown channel: {sink.samples[0]}"

    # -- actuators --------------------------------------------------------------------------------------------------------

    async def test_actuators_take_every_declared_state(self, make_adapter: MakeAdapter) -> None:
        """Twice each, which changes nothing; the state reads back, or the device cannot tell (None)."""
        async with self._opened(make_adapter) as (adapter, clock):
            actuators = _capable(adapter, Actuators)
            for info in _of_kind(adapter, ChannelKind.ACTUATOR).values():
                async with self._restored(actuators, info):
                    for state in info.states * 2:
                        for _ in range(2):
                            await self._soon(actuators.actuate(info.channel, state), f"actuate {info.channel} {state}")
                        await self._expect_state(actuators, info.channel, state, clock)

    async def test_actuators_refuse_an_undeclared_state(self, make_adapter: MakeAdapter) -> None:
        """InputError or AdapterError, and the actuator stays as it is."""
        async with self._opened(make_adapter) as (adapter, clock):
            actuators = _capable(adapter, Actuators)
            for info in _of_kind(adapter, ChannelKind.ACTUATOR).values():
                before = await self._soon(actuators.actuator_state(info.channel), "actuator_state")
                for state in (UNKNOWN, ""):
                    await self._refused(actuators.actuate(info.channel, state), f"actuate {info.channel} to `{state}`")
                if before is not None:
                    await self._expect_state(actuators, info.channel, before, clock)

    async def test_actuators_refuse_an_unknown_channel(self, make_adapter: MakeAdapter) -> None:
        async with self._opened(make_adapter) as (adapter, _):
            actuators = _capable(adapter, Actuators)
            await self._refused(actuators.actuate(UNKNOWN, "on"), "actuate an unknown channel")
            await self._refused(actuators.actuator_state(UNKNOWN), "actuator_state of an unknown channel")

    async def test_close_leaves_actuators_as_they_are(self, make_adapter: MakeAdapter) -> None:
        """Safe states are the runtime's business."""
        async with self._opened(make_adapter) as (adapter, clock):
            actuators = _capable(adapter, Actuators)
            for info in _of_kind(adapter, ChannelKind.ACTUATOR).values():
                async with self._restored(actuators, info):
                    for state in info.states:
                        await self._soon(actuators.actuate(info.channel, state), f"actuate {info.channel} {state}")
                        await self._soon(adapter.close(), "close")
                        await self._soon(adapter.open(), "open")
                        await self._expect_state(actuators, info.channel, state, clock)

    # -- hot-plug and faults ------------------------------------------------------------------------------------------------

    async def test_changes_can_be_watched_and_left(self, make_adapter: MakeAdapter) -> None:
        """The watch ends by cancellation and leaves no task."""
        async with self._opened(make_adapter) as (adapter, _):
            watched, traces = _capable(adapter, HotPlug), _Traces()

            async def watch() -> None:
                async for channels in watched.changes():
                    for info in channels:
                        _check_info(info)

            task = asyncio.ensure_future(watch())
            await asyncio.sleep(0)
            await self._cancel(task, "changes")
            assert set(traces.tasks()) <= traces.before_tasks, "the watch left a task behind"

    async def test_unknown_faults_are_refused_with_the_known_ones(self, make_adapter: MakeAdapter) -> None:
        injector = _capable(make_adapter({}, VirtualClock()), FaultInjection)
        message = _refusal(InputError, lambda: injector.inject(UNKNOWN, 1.0), "an unknown fault")
        missing = [fault for fault in self.faults if fault not in message]
        assert not missing, f"the refusal does not name the known faults {', '.join(missing)}: {message}"

    async def test_faults_come_and_go(self, make_adapter: MakeAdapter) -> None:
        """Any fault may break calls with an error of the product only; when it ends and the adapter is opened again, all is well."""
        clock = VirtualClock()
        adapter = make_adapter({}, clock)
        injector = _capable(adapter, FaultInjection)
        assert self.faults, "set `faults` to the names that `inject` knows"
        for fault in self.faults:
            await self._soon(adapter.open(), f"open before {fault}")
            injector.inject(fault, 1.0)
            with contextlib.suppress(AdapterError):
                await self._use(adapter, clock, enough=0)
            _check_health(adapter)
            injector.inject(fault, 0.0)
            await self._soon(adapter.close(), f"close after {fault}")
            await self._soon(adapter.open(), f"open after {fault}")
            assert adapter.health().ok, f"not well after {fault} ended: {adapter.health().detail}"
            await self._use(adapter, clock)
            await self._soon(adapter.close(), "close")

    # -- steps ------------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _opened(self, make_adapter: MakeAdapter) -> AsyncIterator[tuple[PlatformAdapter, VirtualClock]]:
        clock = VirtualClock()
        adapter = make_adapter({}, clock)
        await self._soon(adapter.open(), "open")
        try:
            yield adapter, clock
        finally:
            await self._soon(adapter.close(), "close")

    @contextlib.asynccontextmanager
    async def _restored(self, actuators: Actuators, info: ChannelInfo) -> AsyncIterator[None]:
        """Brings an actuator back to where it was found."""
        found = await self._soon(actuators.actuator_state(info.channel), f"actuator_state of {info.channel}")
        try:
            yield
        finally:
            if found in info.states:
                await self._soon(actuators.actuate(info.channel, found), f"actuate {info.channel} back to {found}")

    async def _use(self, adapter: PlatformAdapter, clock: VirtualClock, enough: int = _ENOUGH_SAMPLES) -> None:
        """Reads and streams every sensor for a moment."""
        if isinstance(adapter, SampledSensors):
            await self._soon(adapter.read(list(_of_kind(adapter, ChannelKind.SAMPLED, needed=False))), "read")
        streaming = list(_of_kind(adapter, ChannelKind.STREAMING, needed=False))
        if streaming and isinstance(adapter, StreamingSensors):
            sink = _Sink()
            task = asyncio.ensure_future(adapter.stream(streaming, sink))
            await self._feed(task, sink, clock, enough)
            await self._cancel(task, "stream")

    async def _feed(self, task: asyncio.Future[None], sink: _Sink, clock: VirtualClock, enough: int = _ENOUGH_SAMPLES) -> None:
        """Until the sink has enough; a source that ends by itself may give fewer, but not none."""
        fed = await self._until(lambda: task.done() or len(sink.samples) >= enough, clock)
        if task.done():
            task.result()
        assert fed, f"{len(sink.samples)} samples within {self.deadline_s:g} s, expected {enough}"
        assert sink.samples or not enough, "the stream ended without a sample"

    async def _expect_silence(self, sink: _Sink, clock: VirtualClock) -> None:
        """A block's time and more passes; whoever still feeds the sink is found."""
        count = len(sink.samples)
        for _ in range(20):
            clock.advance(self.step_s)
            await asyncio.sleep(0)
        assert len(sink.samples) == count, "samples came after the stream was cancelled"

    async def _expect_idle(self, adapter: PlatformAdapter, infos: Sequence[ChannelInfo], when: str) -> None:
        by_kind = {kind: [info.channel for info in infos if info.kind is kind] for kind in ChannelKind}
        if isinstance(adapter, SampledSensors) and by_kind[ChannelKind.SAMPLED]:
            await self._refused(adapter.read(by_kind[ChannelKind.SAMPLED]), f"read {when}", AdapterError)
        if isinstance(adapter, StreamingSensors) and by_kind[ChannelKind.STREAMING]:
            await self._refused(adapter.stream(by_kind[ChannelKind.STREAMING], _Sink()), f"stream {when}", AdapterError)
        for info in infos:
            if isinstance(adapter, Actuators) and info.kind is ChannelKind.ACTUATOR and info.states:
                await self._refused(adapter.actuate(info.channel, info.states[0]), f"actuate {when}", AdapterError)

    async def _expect_state(self, actuators: Actuators, channel: str, state: str, clock: VirtualClock) -> None:
        """Slow hardware may take a while to report it."""
        end_s = asyncio.get_running_loop().time() + self.deadline_s
        while (reported := await self._soon(actuators.actuator_state(channel), "actuator_state")) not in (state, None):
            assert asyncio.get_running_loop().time() < end_s, f"{channel} was brought to `{state}` and reports `{reported}`"
            clock.advance(self.step_s)
            await asyncio.sleep(_POLL_S)

    async def _expect_gone(self, traces: _Traces, when: str) -> None:
        await self._until(lambda: not traces.left(), VirtualClock())
        assert not traces.left(), f"{when} there are left: {', '.join(traces.left())}"

    async def _until(self, condition: Callable[[], bool], clock: VirtualClock) -> bool:
        """Whether it came true within the deadline; virtual time passes meanwhile."""
        end_s = asyncio.get_running_loop().time() + self.deadline_s
        while not condition() and asyncio.get_running_loop().time() < end_s:
            clock.advance(self.step_s)
            await asyncio.sleep(_POLL_S)
        return condition()

    async def _cancel(self, task: asyncio.Future[Any], what: str) -> None:
        task.cancel()
        _, hanging = await asyncio.wait([task], timeout=self.deadline_s)
        assert not hanging, f"{what} did not end within {self.deadline_s:g} s of its cancellation"
        if not task.cancelled() and (err := task.exception()) is not None:
            raise AssertionError(f"{what} answered its cancellation with {err!r}") from err

    async def _refused(self, call: Awaitable[Any], what: str, *only: type[EdgeRuntimeError]) -> None:
        """By InputError or AdapterError, or by one of `only`."""
        kinds = only or (InputError, AdapterError)
        try:
            result = await self._soon(call, what)
        except kinds:
            return
        raise AssertionError(f"{what}: expected {' or '.join(kind.__name__ for kind in kinds)}, got {result!r}")

    async def _soon(self, call: Awaitable[_Result], what: str) -> _Result:
        task = asyncio.ensure_future(call)
        await asyncio.wait([task], timeout=self.deadline_s)
        if not task.done():
            await self._cancel(task, what)
            raise AssertionError(f"{what} took longer than {self.deadline_s:g} s")
        return task.result()


@dataclass
class _Sink:
    """Keeps what it is given, and a copy of each block as it was."""

    samples: list[Sample] = field(default_factory=list)
    blocks: list[tuple[str, Array, Array]] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)

    def __call__(self, sample: Sample) -> None:
        self.samples.append(sample)
        if sample.block is not None:
            self.blocks.append((sample.channel, sample.block, sample.block.copy()))
        self.threads.add(threading.get_ident())

    def check(self, asked: Mapping[str, ChannelInfo]) -> None:
        """Called on the event loop, with samples of channels asked for."""
        assert self.threads == {threading.get_ident()}, "the sink was called from another thread than the event loop's"
        for sample in self.samples:
            assert sample.channel in asked, f"`{sample.channel}` was not asked for (asked: {', '.join(asked)})"
            if sample.block is None:
                _check_scalar(sample, asked[sample.channel])
            else:
                _check_block(sample.block, sample, asked[sample.channel])


class _Traces:
    """Tasks, threads and open files of this process, to be compared with later."""

    def __init__(self) -> None:
        self.before_tasks = set(self.tasks())
        self._threads = set(_threads())
        self._files = _open_files()

    def tasks(self) -> set[asyncio.Task[Any]]:
        return asyncio.all_tasks()

    def left(self) -> list[str]:
        """What is there now and was not before. Threads of the loop's own pool do not count."""
        found = [f"task {task.get_name()}" for task in self.tasks() - self.before_tasks]
        found += [f"thread {thread.name}" for thread in _threads() if thread not in self._threads]
        files = _open_files() - self._files
        return found + ([f"{files} open files"] if files > 0 else [])


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")]


def _open_files() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def _capable(adapter: PlatformAdapter, capability: type[_Capability]) -> _Capability:
    if not isinstance(adapter, capability):
        raise SkipTest(f"{type(adapter).__name__} has no {capability.__name__}")
    return adapter


def _of_kind(adapter: PlatformAdapter, kind: ChannelKind, *, needed: bool = True) -> dict[str, ChannelInfo]:
    infos = {info.channel: info for info in adapter.channels() if info.kind is kind}
    if needed and not infos:
        raise SkipTest(f"no {kind.value} channel here")
    return infos


def _refusal(kind: type[EdgeRuntimeError], call: Callable[[], object], what: str) -> str:
    try:
        result = call()
    except kind as err:
        return str(err)
    raise AssertionError(f"{what}: expected {kind.__name__}, got {result!r}")


def _check_health(adapter: PlatformAdapter) -> None:
    health = adapter.health()
    assert isinstance(health, Health), f"health() gave {health!r}"
    counters: Mapping[str, Any] = health.counters
    wrong = {name: count for name, count in counters.items() if not isinstance(count, int)}
    assert not wrong, f"counters are whole numbers, got {wrong}"


def _check_info(info: ChannelInfo) -> None:
    assert info.channel, "a channel without a name"
    assert isinstance(info.kind, ChannelKind), f"{info.channel}: kind {info.kind!r}"
    parse_unit(info.unit)
    assert info.rate_hz >= 0, f"{info.channel}: rate_hz {info.rate_hz}"
    assert not info.states or info.kind is ChannelKind.ACTUATOR, f"{info.channel} is no actuator and has states"
    assert len(set(info.states)) == len(info.states), f"{info.channel}: a state is named twice: {info.states}"
    if info.minimum is not None and info.maximum is not None:
        assert info.minimum < info.maximum, f"{info.channel}: minimum {info.minimum}, maximum {info.maximum}"


def _check_scalar(sample: Sample, info: ChannelInfo) -> None:
    assert sample.block is None, f"{sample.channel}: expected a scalar, got a block"
    if sample.value is None:
        assert sample.quality is not Quality.GOOD, f"{sample.channel}: None with quality GOOD"
        return
    assert isfinite(sample.value), f"{sample.channel}: {sample.value} is no reading; say None with quality BAD"
    low = info.minimum is None or sample.value >= info.minimum
    high = info.maximum is None or sample.value <= info.maximum
    assert (low and high) or sample.quality is not Quality.GOOD, f"{sample.channel}: {sample.value} is outside its own range and GOOD"


def _check_block(block: Array, sample: Sample, info: ChannelInfo) -> None:
    assert block.dtype == np.float32, f"{sample.channel}: a block of {block.dtype}, expected float32"
    assert block.ndim == 1, f"{sample.channel}: a block of shape {block.shape}, expected one dimension"
    assert block.size, f"{sample.channel}: an empty block"
    assert sample.value is None, f"{sample.channel}: a block and a value at once"
    assert sample.rate_hz == info.rate_hz > 0, f"{sample.channel}: rate_hz {sample.rate_hz} in the block, {info.rate_hz} declared"
