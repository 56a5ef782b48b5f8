"""Rules and actuation, beside a naive engine that evaluates every rule at every reading as plain Python, in the same run.

Mix of 1,000 rules over 10 sensors: 700 thresholds, 200 joins of two facts, 50 of three, 50 thresholds with `for 1s`. The naive
engine knows neither units nor unknown values nor `for`, so it does less; its rising edges on the 950 rules without `for` must be
the same as ours. Readings are a random walk over the range of the thresholds. No hardware: the adapter only notes the time.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.rows import Row, row
from edge_runtime.actuation.arbiter import Arbiter
from edge_runtime.actuation.driver import Actuation, Output
from edge_runtime.bus import Bus
from edge_runtime.clock import SystemClock
from edge_runtime.config.deployment import ActuatorSpec, RuleSpec
from edge_runtime.reasoning.engine import Engine
from edge_runtime.reasoning.facts import FactType
from edge_runtime.types import Decision, DecisionKind, Timestamp

SENSORS = 10
READINGS = 50_000
NAIVE_READINGS = 4_000
PERIOD_NS = 1_000_000
ACTUATIONS = 2_000

Pack = list[tuple[str, Callable[[dict[str, float]], bool] | None]]


def run() -> dict[str, Any]:
    """Takes about 15 s."""
    walk = _walk(READINGS)
    small, large = _pack(20), _pack(1000)
    latency, quiet = _latency(small, walk), _latency(small, _still(READINGS))
    ours, firings, edges = _throughput(large, walk)
    naive, naive_edges = _naive(large, walk[:NAIVE_READINGS])
    _, _, edges_head = _throughput(large, walk[:NAIVE_READINGS])
    small_naive = _naive_latency(small, walk)
    actuation = asyncio.run(_actuation())
    rows: list[Row] = [
        row("set + step, 20 rules, p50", latency[0], "us", small_naive[0], "<= 10"),
        row("set + step, 20 rules, p99", latency[1], "us", small_naive[1]),
        row("set + step, 20 rules, value unchanged, p50", quiet[0], "us"),
        row("readings, 1,000 rules", ours, "1/s", naive, ">= 30,000"),
        row("firings, 1,000 rules", firings, "1/s"),
        row("rising edges as the naive engine has them", edges_head, "", naive_edges, str(naive_edges)),
        row("decision -> adapter called, p50", actuation[0], "us", None, "<= 100"),
        row("decision -> adapter called, p99", actuation[1], "us"),
    ]
    return {"rows": rows, "edges_in_all": edges}


def main() -> None:
    print(json.dumps(run(), indent=2))


def _pack(count: int) -> Pack:
    """Rules as text for our engine, and as Python for the naive one (None for those with `for`)."""
    rng = random.Random(1)
    pack: Pack = []
    for n in range(count):
        share = n / count
        kind, size = ("plain", 1) if share < 0.7 else ("plain", 2) if share < 0.9 else ("plain", 3) if share < 0.95 else ("timed", 1)
        parts = [(f"s{rng.randrange(SENSORS)}", rng.choice([">", "<"]), round(rng.uniform(0, 100), 1)) for _ in range(size)]
        if kind == "timed":
            pack.append((f"{parts[0][0]} {parts[0][1]} {parts[0][2]} degC for 1s", None))
            continue
        text = " and ".join(f"{name} {sign} {limit} degC" for name, sign, limit in parts)
        code = " and ".join(f"f[{name!r}] {sign} {limit}" for name, sign, limit in parts)
        pack.append((text, eval(f"lambda f: {code}")))
    return pack


def _walk(count: int) -> list[tuple[str, float]]:
    rng = random.Random(2)
    values = [50.0] * SENSORS
    walk = []
    for n in range(count):
        sensor = n % SENSORS
        values[sensor] = min(100.0, max(0.0, values[sensor] + rng.gauss(0, 5)))
        walk.append((f"s{sensor}", values[sensor]))
    return walk


def _still(count: int) -> list[tuple[str, float]]:
    return [(f"s{n % SENSORS}", 50.0) for n in range(count)]


def _engine(pack: Pack) -> Engine:
    rules = [RuleSpec(rule=f"r{n}", when=text) for n, (text, _) in enumerate(pack)]
    engine = Engine(rules, {f"s{n}": FactType("number", "degC") for n in range(SENSORS)}, revision="1", boot="bench")
    for n in range(SENSORS):
        engine.set(f"s{n}", 50.0, at_ns=0)
    engine.step(Timestamp(0, 0, 0))
    return engine


def _throughput(pack: Pack, walk: Sequence[tuple[str, float]]) -> tuple[float, float, int]:
    """Readings/s, firings/s, and rising edges of the rules without `for`."""
    engine = _engine(pack)
    plain = {f"r{n}" for n, (_, naive) in enumerate(pack) if naive is not None}
    decisions: list[Decision] = []
    begun = time.perf_counter()
    for n, (name, value) in enumerate(walk):
        at = n * PERIOD_NS
        engine.set(name, value, at_ns=at, seq=n)
        decisions += engine.step(Timestamp(at, at, 0))
    seconds = time.perf_counter() - begun
    fired = [decision for decision in decisions if decision.kind is DecisionKind.FIRED]
    return len(walk) / seconds, len(fired) / seconds, sum(decision.rule in plain for decision in fired)


def _latency(pack: Pack, walk: Sequence[tuple[str, float]]) -> tuple[float, float]:
    engine = _engine(pack)
    times = []
    for n, (name, value) in enumerate(walk):
        now = Timestamp(n * PERIOD_NS, n * PERIOD_NS, 0)
        begun = time.perf_counter_ns()
        engine.set(name, value, at_ns=now.mono_ns, seq=n)
        engine.step(now)
        times.append(time.perf_counter_ns() - begun)
    return _percentiles(times)


def _naive(pack: Pack, walk: Sequence[tuple[str, float]]) -> tuple[float, int]:
    rules = [rule for _, rule in pack if rule is not None]
    facts = {f"s{n}": 50.0 for n in range(SENSORS)}
    truths = [rule(facts) for rule in rules]
    edges = 0
    begun = time.perf_counter()
    for name, value in walk:
        facts[name] = value
        for n, rule in enumerate(rules):
            truth = rule(facts)
            if truth is not truths[n]:
                truths[n] = truth
                edges += truth
    return len(walk) / (time.perf_counter() - begun), edges


def _naive_latency(pack: Pack, walk: Sequence[tuple[str, float]]) -> tuple[float, float]:
    rules = [rule for _, rule in pack if rule is not None]
    facts = {f"s{n}": 50.0 for n in range(SENSORS)}
    truths = [rule(facts) for rule in rules]
    times = []
    for name, value in walk:
        begun = time.perf_counter_ns()
        facts[name] = value
        for n, rule in enumerate(rules):
            truths[n] = rule(facts)
        times.append(time.perf_counter_ns() - begun)
    return _percentiles(times)


def _percentiles(times_ns: Sequence[int]) -> tuple[float, float]:
    cuts = statistics.quantiles(times_ns, n=100)
    return cuts[49] / 1000, cuts[98] / 1000


class _Probe:
    """An adapter that notes when it is called."""

    def __init__(self) -> None:
        self.called_ns = 0
        self.done = asyncio.Event()

    async def actuate(self, channel: str, state: str) -> None:
        self.called_ns = time.perf_counter_ns()
        self.done.set()

    async def actuator_state(self, channel: str) -> str | None:
        return None


async def _actuation() -> tuple[float, float]:
    """From the publishing of a decision to the call of the adapter, one at a time."""
    bus, clock, probe = Bus(), SystemClock(), _Probe()
    arbiter = Arbiter({"valve": ActuatorSpec(safe_state="closed")})
    rules = [RuleSpec(rule="r", when="true", then={"open": "valve"})]
    actuation = Actuation(bus, clock, arbiter, {"valve": Output(probe, "valve")}, rules=rules, boot="bench")
    task = asyncio.create_task(actuation.run(), name="actuation")
    await probe.done.wait()
    times = []
    for n in range(ACTUATIONS):
        await asyncio.sleep(0)
        probe.done.clear()
        kind = DecisionKind.RELEASED if n % 2 else DecisionKind.FIRED
        decision = Decision(f"bench-{n}", kind, "r", clock.now(), "1")
        begun = time.perf_counter_ns()
        bus.publish(decision)
        await probe.done.wait()
        times.append(probe.called_ns - begun)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return _percentiles(times)


if __name__ == "__main__":
    main()
