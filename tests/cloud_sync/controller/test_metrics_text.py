"""/metrics: text that an OpenMetrics parser takes, and figures that are those of the database."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert

from cloud_sync.controller import metrics
from cloud_sync.controller.engine import open_database
from cloud_sync.controller.ingest import Origin
from cloud_sync.controller.schema import certificates, desired, documents
from cloud_sync.controller.sink import Sink
from cloud_sync.loopback import LoopbackBroker, LoopbackTransport
from edge_runtime.records import Record, encode_body

_SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\[\\n"])*",?)*)\})? (-?[0-9.e+-]+)')
_LABEL = re.compile(r'([a-z_]+)="((?:[^"\\\n]|\\[\\n"])*)"')
_SUFFIX = {"counter": "_total", "gauge": "", "info": "_info"}


def parse(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """OpenMetrics 1.0, strictly as this project writes it: families whole and in one place, TYPE, UNIT, HELP, samples, # EOF."""
    assert text.endswith("\n# EOF\n")
    found, families, family, kind = {}, set(), "", ""
    for line in text.split("\n")[:-2]:
        if line.startswith("# TYPE "):
            _, _, family, kind = line.split(" ")
            assert family not in families
            families.add(family)
        elif line.startswith("# UNIT "):
            _, _, name, unit = line.split(" ")
            assert name == family
            assert family.endswith(f"_{unit}")
        elif line.startswith("# HELP "):
            assert line.split(" ", 3)[2] == family
        else:
            match = _SAMPLE.fullmatch(line)
            assert match is not None, line
            assert match[1] == family + _SUFFIX[kind]
            labels = tuple(
                (name, re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), value)) for name, value in _LABEL.findall(match[2] or "")
            )
            assert (match[1], labels) not in found
            found[match[1], labels] = float(match[3])
    return found


@given(st.text(), st.text(), st.floats(allow_nan=False, allow_infinity=False))
def test_any_label_and_help_survive(label: str, about: str, value: float) -> None:
    snapshot = metrics.Snapshot()
    snapshot.add("things", "gauge", about, [({"tenant": label}, value)])
    assert parse(metrics.render(snapshot)) == {("edge_controller_things", (("tenant", label),)): value}
    assert metrics.render(snapshot).count("\n") == 4


def test_a_family_without_samples_is_not_shown() -> None:
    snapshot = metrics.Snapshot()
    snapshot.add("things", "gauge", "Things.", [])
    assert metrics.render(snapshot) == "# EOF\n"


async def test_the_figures_are_those_of_the_database(database_url: str) -> None:
    database = await open_database(database_url)
    assert parse(metrics.render(await metrics.snapshot(database.engine)))["edge_controller_messages_rejected_total", ()] == 0
    await _filled(database_url)
    now = time.time_ns()
    day = 86_400 * 10**9
    async with database.engine.begin() as connection:
        await connection.execute(insert(documents).values(digest="sha256:x", text="", created_by="ada", created_wall_ns=1))
        for gateway, revision, phase in (("g1", 1, "confirmed"), ("g1", 2, "reverted"), ("g2", 1, "confirmed")):
            row = {"tenant": "acme", "gateway": gateway, "revision": revision, "digest": "sha256:x", "expires_wall_ns": 1, "message": b""}
            await connection.execute(insert(desired).values(row | {"created_by": "ada", "created_wall_ns": 1, "phase": phase}))
        for serial, gateway, ends, revoked in (
            ("1", "g1", now - day, 0),
            ("2", "g1", now + 30 * day, 0),
            ("3", "g2", now + day, 0),
            ("4", "g3", now - 1, 0),
            ("5", "g4", now + day, 5),
        ):
            row = {"serial": serial, "tenant": "acme", "gateway": gateway, "sha256": "", "not_before_wall_ns": 0, "not_after_wall_ns": ends}
            await connection.execute(insert(certificates).values(row | {"revoked_wall_ns": revoked}))
    requests = metrics.ApiRequests()
    requests.observe("GET", "/v1/gateways/{gateway}", 200, 0.25)
    requests.observe("GET", "/v1/gateways/{gateway}", 200, 0.5)
    writer = database.writer()
    sink = Sink(LoopbackTransport(LoopbackBroker()), writer)
    text = metrics.render(await metrics.snapshot(database.engine, sink, requests))
    writer.close()
    found = {
        (name.removeprefix("edge_controller_"), *(value for _, value in labels)): value for (name, labels), value in parse(text).items()
    }
    expected = {
        ("gateways", "acme", "online"): 1,
        ("gateways", "acme", "offline"): 1,
        ("gateways", "other", "offline"): 1,
        ("records_total", "acme"): 30,
        ("records_total", "other"): 5,
        ("duplicates_total", "acme"): 10,
        ("duplicates_total", "other"): 0,
        ("quarantined_batches", "acme"): 1,
        ("messages_rejected_total",): 4,
        ("deployments", "acme", "reverted"): 1,
        ("deployments", "acme", "confirmed"): 1,
        ("certificates", "acme", "valid"): 1,
        ("certificates", "acme", "expiring"): 1,
        ("certificates", "acme", "expired"): 1,
        ("api_requests_total", "GET", "/v1/gateways/{gateway}", "200"): 2,
        ("api_request_seconds_total", "GET", "/v1/gateways/{gateway}"): 0.75,
        ("sink_store_up",): 1,
        ("sink_connected",): 0,
        ("ingest_lag_seconds",): 0,
    }
    assert {key: found[key] for key in expected} == expected
    assert found["certificate_next_expiry_timestamp_seconds", "acme"] == pytest.approx((now + day) / 1e9)
    assert found["database_bytes",] > 10_000
    await database.close()


async def _filled(url: str) -> None:
    """Two tenants: 30 records, 10 of them twice, and one batch in quarantine; 5 records."""
    import asyncio

    from cloud_sync.controller.address import parse_address
    from cloud_sync.controller.ingest import open_writer

    def fill() -> None:
        writer = open_writer(parse_address(url))
        with writer.transaction():
            for tenant, gateway, seqs in (
                ("acme", "g1", range(20)),
                ("acme", "g1", range(10, 20)),
                ("acme", "g2", range(10)),
                ("other", "g", range(5)),
            ):
                writer.insert(Origin(tenant, gateway, "b"), [Record(seq, "r", 0, 0, 0, encode_body(1)) for seq in seqs], 1)
            writer.set_status(Origin("acme", "g1", "b"), True, "1", 1)
            writer.set_status(Origin("acme", "g2", "b"), False, "1", 1)
            writer.set_status(Origin("other", "g", "b"), False, "1", 1)
            writer.quarantine(Origin("acme", "g1", "b"), 99, "why", b"x", 1)
            writer.count("messages_rejected", 4)
            writer.settle()
        writer.close()

    await asyncio.to_thread(fill)


def test_routes_are_bounded() -> None:
    requests = metrics.ApiRequests()
    for number in range(2000):
        requests.observe("GET", f"/{number}", 404, 0.0)
    assert len(requests.counts) <= 501
    assert sum(requests.counts.values()) == 2000
