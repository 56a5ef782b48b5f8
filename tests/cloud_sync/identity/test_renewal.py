"""A certificate's life: renewed in time, after 90 days away, not for ever; and ended by an operator."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from cloud_sync.controller import enrolment
from cloud_sync.controller.authority import Authority
from cloud_sync.controller.schema import audit as audit_table
from cloud_sync.gateway import mqtt_uplink
from cloud_sync.identity import Validity, parse_validity, read_validity
from cloud_sync.join import request_for
from cloud_sync.renewal import RenewalRefused, Renewer, open_renewer
from edge_runtime.clock import BUILD_WALL_NS, VirtualClock
from edge_runtime.errors import InputError, TransportError
from edge_runtime.types import LinkSettings

Until = Callable[[Callable[[], object]], Any]
_DAY_NS = 86_400 * 10**9


def renewer(controller: Any, name: str, clock: VirtualClock | None = None) -> Renewer:
    identity = controller.identity(name)
    return Renewer(controller.place.url, identity.ca, identity.cert, identity.key, clock or VirtualClock(), lambda: 0.0)


def serial(controller: Any, name: str) -> int:
    return x509.load_pem_x509_certificate(controller.identity(name).cert.read_bytes()).serial_number


async def actions(controller: Any) -> list[tuple[str, str]]:
    async with controller.context.database.engine.connect() as connection:
        return [(row.actor, row.action) for row in await connection.execute(select(audit_table).order_by(audit_table.c.seq))]


async def test_it_is_renewed_when_two_thirds_of_its_life_are_over(controller: Any, background: Callable[..., Any], until: Until) -> None:
    await controller.join("gw-1")
    first = read_validity(controller.identity("gw-1").cert)
    clock = VirtualClock(first.not_before_ns + int(0.6 * first.life_ns))
    keeping = renewer(controller, "gw-1", clock)
    assert await keeping._due_in_s() == pytest.approx(first.life_ns * (2 / 3 - 0.6) / 1e9, abs=1)
    controller.advance(5)
    clock.advance_ns(int(0.1 * first.life_ns))
    background(keeping.run())
    await until(lambda: keeping.renewals == 1)
    assert read_validity(controller.identity("gw-1").cert).not_after_ns > first.not_after_ns
    assert (await controller.call("GET", "/v1/whoami", controller.identity("gw-1")))[0] == 200


async def test_a_fresh_certificate_is_given_again(controller: Any) -> None:
    await controller.join("gw-1")
    before = serial(controller, "gw-1")
    for _ in range(3):
        await renewer(controller, "gw-1").renew()
    assert serial(controller, "gw-1") == before


async def test_after_90_days_away_it_renews_by_itself(
    controller: Any, controller_broker: Any, background: Callable[..., Any], until: Until
) -> None:
    """The certificate expired 83 days ago: the broker refuses it, the API renews it, the broker takes the new one."""
    joined_days_ago = timedelta(days=90)
    await controller.join("gw-1")
    identity = controller.identity("gw-1")
    await _age(controller, "gw-1", joined_days_ago)
    assert (await controller.call("GET", "/v1/whoami", identity))[0] == 403
    with pytest.raises(TransportError):
        await controller_broker.connect("gw-1", cert=str(identity.cert), key=str(identity.key))
    keeping = renewer(controller, "gw-1", VirtualClock(controller.context.now_ns()))
    background(keeping.run())
    await until(lambda: keeping.renewals == 1)
    assert (await controller.call("GET", "/v1/whoami", identity))[0] == 200
    session = await controller_broker.connect("gw-1", cert=str(identity.cert), key=str(identity.key))
    await session.close()


@pytest.mark.parametrize("wall_ns", [1, 4_102_444_800 * 10**9], ids=["1970", "2100"])
async def test_a_gateway_whose_clock_is_wrong_asks_the_controller_once(
    controller: Any, background: Callable[..., Any], until: Until, wall_ns: int
) -> None:
    await controller.join("gw-1")
    before = serial(controller, "gw-1")
    controller.advance(30)
    keeping = renewer(controller, "gw-1", VirtualClock(wall_ns=wall_ns))
    background(keeping.run())
    await until(lambda: keeping.renewals == 1)
    assert serial(controller, "gw-1") != before
    assert await keeping._attempt() >= 3600


async def test_a_broker_that_is_not_reached_is_a_reason_to_ask(controller: Any, background: Callable[..., Any], until: Until) -> None:
    await controller.join("gw-1")
    keeping = renewer(controller, "gw-1", VirtualClock(controller.context.now_ns()))
    background(keeping.run())
    keeping.poke()
    await until(lambda: keeping.renewals == 1)


async def test_a_gateway_whose_broker_refuses_its_certificate_asks_at_once(
    controller: Any, controller_broker: Any, background: Callable[..., Any], until: Until, memory_outbox: Any
) -> None:
    """Its clock stands where the certificate is young, so nothing else would make it ask."""
    await controller.join("gw-1")
    await _age(controller, "gw-1", timedelta(days=7, hours=1))
    mine, settings = controller.identity("gw-1"), controller.settings
    young = parse_validity(mine.cert.read_text()).not_before_ns + 86_400 * 10**9
    broker, place = settings.broker.port, controller.place.url
    link = LinkSettings(
        host="localhost",
        port=broker,
        tenant="acme",
        gateway="gw-1",
        boot="b",
        version="1",
        ca=str(settings.ca),
        cert=str(mine.cert),
        key=str(mine.key),
        controller_url=place,
        controller_ca=str(settings.ca),
        reconnect_max_s=0.5,
    )
    clock = VirtualClock(max(young, BUILD_WALL_NS))
    uplink = mqtt_uplink(link, memory_outbox, clock, dict, lambda up, detail: None)
    background(uplink.run())
    await until(lambda: uplink.up)
    assert parse_validity(mine.cert.read_text()).not_before_ns > young


async def test_the_grace_period_ends(controller: Any) -> None:
    await controller.join("gw-1")
    controller.advance(7 + 365 + 1)
    with pytest.raises(RenewalRefused, match="grace"):
        await renewer(controller, "gw-1").renew()


async def test_a_certificate_of_another_authority_renews_nothing(controller: Any, other_authority: Authority) -> None:
    await controller.join("gw-1")
    identity = controller.identity("gw-1")
    key = x509.load_pem_x509_certificate(identity.cert.read_bytes()).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    identity.cert.write_text(other_authority.issue("gw-1", key, datetime.now(UTC), 7).pem)
    with pytest.raises(TransportError):
        await renewer(controller, "gw-1").renew()


async def test_a_certificate_that_the_database_does_not_know_renews_nothing(controller: Any) -> None:
    """Signed by the right key, and by nobody's leave: a stolen authority shows."""
    await controller.join("gw-1")
    identity = controller.identity("gw-1")
    key = x509.load_pem_x509_certificate(identity.cert.read_bytes()).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    identity.cert.write_text(controller.context.authority.issue("gw-1", key, datetime.now(UTC), 7).pem)
    with pytest.raises(RenewalRefused, match="records"):
        await renewer(controller, "gw-1").renew()
    assert ("renew", "renew_refused") in await actions(controller)


async def test_the_controllers_own_certificate_is_no_gateways(controller: Any) -> None:
    cert, key = controller.settings.client("controller")
    for method, path in (("GET", "/v1/whoami"), ("POST", "/v1/renew")):
        assert (await controller.call(method, path, SimpleNamespace(cert=cert, key=key), {}))[0] == 401


async def test_nothing_is_renewed_without_a_certificate(controller: Any) -> None:
    assert (await controller.call("POST", "/v1/renew", None, {}))[0] == 401


async def test_a_new_key_may_come_with_the_renewal_but_no_other_name(controller: Any, tmp_path: Path) -> None:
    await controller.join("gw-1")
    await controller.join("gw-2")
    identity = controller.identity("gw-1")
    status, _ = await controller.call("POST", "/v1/renew", identity, {"csr": request_for(tmp_path / "b.key", "gw-2")})
    assert status == 422
    status, answer = await controller.call("POST", "/v1/renew", identity, {"csr": request_for(tmp_path / "new.key", "gw-1")})
    assert status == 200
    (tmp_path / "new.pem").write_text(answer["certificate"])
    rolled = SimpleNamespace(cert=tmp_path / "new.pem", key=tmp_path / "new.key")
    assert await controller.call("GET", "/v1/whoami", rolled) == (200, {"gateway": "gw-1"})


async def test_an_answer_for_another_key_is_not_taken(controller: Any) -> None:
    await controller.join("gw-1")
    await controller.join("gw-2")
    keeping, cert = renewer(controller, "gw-1"), controller.identity("gw-1").cert
    before = cert.read_bytes()
    for text in (controller.identity("gw-2").cert.read_text(), "", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with pytest.raises(TransportError):
            keeping._take(text)
    assert cert.read_bytes() == before
    assert sorted(path.name for path in cert.parent.iterdir()) == ["ca.pem", "gateway.key", "gateway.pem", "root.json"]


async def test_without_a_controller_it_only_waits(controller: Any, background: Callable[..., Any], until: Until) -> None:
    await controller.join("gw-1")
    keeping = renewer(controller, "gw-1", VirtualClock(controller.context.now_ns() + 30 * _DAY_NS))
    keeping._place = type(keeping._place)("127.0.0.1", 9)
    background(keeping.run())
    await until(lambda: keeping.problem)
    assert "cannot reach" in str(keeping.problem)


async def test_a_revoked_gateway_is_put_out_everywhere(controller: Any, controller_broker: Any, until: Until) -> None:
    await controller.join("gw-1")
    await controller.join("gw-2")
    files = {"cert": str(controller.identity("gw-1").cert), "key": str(controller.identity("gw-1").key)}
    other = {"cert": str(controller.identity("gw-2").cert), "key": str(controller.identity("gw-2").key)}
    root = "fl/v1/acme/g/gw-1"
    desk, live = await controller_broker.connect("controller"), await controller_broker.connect("gw-1", **files)
    heard: list[str] = []
    said: list[str] = []
    await live.subscribe(f"{root}/dn/#", lambda topic, _: heard.append(topic))
    await desk.subscribe("fl/v1/acme/#", lambda topic, _: said.append(topic))
    await desk.publish(f"{root}/dn/desired", b"before", retain=True)
    await until(lambda: heard)

    done = await enrolment.revoke(controller.context, "ada", "gw-1", "stolen")
    assert (len(done.serials), done.broker) == (1, "reloaded")

    assert (await controller.call("GET", "/v1/whoami", controller.identity("gw-1")))[0] == 403
    with pytest.raises(RenewalRefused, match="stolen"):
        await renewer(controller, "gw-1").renew()
    await _refused_by(controller_broker, "gw-1", files)
    heard.clear()
    again: list[str] = []
    try:
        await desk.publish(f"{root}/dn/desired", b"after", retain=True)
        await live.subscribe("#", lambda topic, _: again.append(topic))
        await live.publish(f"{root}/up/tlm", b"still here")
    except TransportError:
        pass
    still = await controller_broker.connect("gw-2", **other)
    await still.publish("fl/v1/acme/g/gw-2/up/end", b"")
    await until(lambda: "fl/v1/acme/g/gw-2/up/end" in said)
    assert heard + again == []
    assert f"{root}/up/tlm" not in said
    for session in (still, live, desk):
        await session.close()


async def test_two_revocations_in_one_second_both_hold(controller: Any, controller_broker: Any) -> None:
    names = ["gw-1", "gw-2", "gw-3"]
    for name in names:
        await controller.join(name)
    await asyncio.gather(*(enrolment.revoke(controller.context, "ada", name) for name in names[:2]))
    for name in names[:2]:
        identity = controller.identity(name)
        await _refused_by(controller_broker, name, {"cert": str(identity.cert), "key": str(identity.key)})
    identity = controller.identity("gw-3")
    await (await controller_broker.connect("gw-3", cert=str(identity.cert), key=str(identity.key))).close()


async def test_a_revoked_name_comes_back_only_by_the_operators_word(controller: Any, controller_broker: Any, tmp_path: Path) -> None:
    await controller.join("gw-1")
    await enrolment.revoke(controller.context, "ada", "gw-1")
    with pytest.raises(InputError, match="was revoked"):
        await controller.join("gw-1")
    await controller.join("gw-1", await controller.token("gw-1", rejoin=True))
    identity = controller.identity("gw-1")
    session = await controller_broker.connect("gw-1", cert=str(identity.cert), key=str(identity.key))
    await session.publish("fl/v1/acme/g/gw-1/up/tlm", b"x")
    await session.close()


async def test_what_was_revoked_and_not_written_is_written_at_start(controller: Any, controller_broker: Any) -> None:
    """Killed between the commit and the file."""
    await controller.join("gw-1")
    crl = controller.settings.crl.read_bytes()
    await enrolment.revoke(controller.context, "ada", "gw-1")
    controller.settings.crl.write_bytes(crl)
    await enrolment.publish_revocations(controller.context)
    written = x509.load_pem_x509_crl(controller.settings.crl.read_bytes())
    assert [entry.serial_number for entry in written] == [serial(controller, "gw-1")]


async def test_nobody_is_revoked_who_never_joined(controller: Any) -> None:
    with pytest.raises(InputError, match="has joined"):
        await enrolment.revoke(controller.context, "ada", "gw-9")


@given(
    since=st.datetimes(datetime(1970, 1, 1), datetime(2060, 1, 1)),
    days=st.floats(0.01, 20_000),
)
def test_validity_is_read_as_the_library_reads_it(since: datetime, days: float) -> None:
    key = _key()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gw-1")])
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key()).serial_number(1)
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding

    until = since + timedelta(days=days)
    signed = made.not_valid_before(since).not_valid_after(until).sign(key, hashes.SHA256())
    found = parse_validity("a line before\n" + signed.public_bytes(Encoding.PEM).decode())
    expected = [int(moment.timestamp()) * 10**9 for moment in (signed.not_valid_before_utc, signed.not_valid_after_utc)]
    assert found == Validity(*expected)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_certificate_are_a_value_error(data: bytes) -> None:
    import ssl

    with pytest.raises(ValueError):
        parse_validity(ssl.DER_cert_to_PEM_cert(b"\x30\x81\xc8" + data))


def test_a_gateway_that_never_joined_has_no_renewer() -> None:
    settings = LinkSettings(host="h", port=1, tenant="t", gateway="g", boot="b", version="1", ca="ca", cert="c", key="k")
    assert open_renewer(settings, VirtualClock()) is None


async def _age(controller: Any, name: str, by: timedelta) -> None:
    """Makes a gateway's certificate one that was issued that long ago, on the disk and in the database."""
    from sqlalchemy import update

    from cloud_sync.controller.schema import certificates

    identity, authority = controller.identity(name), controller.context.authority
    key = x509.load_pem_x509_certificate(identity.cert.read_bytes()).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    old = authority.issue(name, key, datetime.now(UTC) - by, 7)
    identity.cert.write_text(old.pem)
    row = {field: getattr(old, field) for field in ("serial", "sha256", "not_before_wall_ns", "not_after_wall_ns", "pem")}
    async with controller.context.database.engine.begin() as connection:
        await connection.execute(update(certificates).where(certificates.c.gateway == name).values(**row))


async def _refused_by(broker: Any, name: str, files: dict[str, str]) -> None:
    """Waits until the broker, which reads its list some time after the signal, takes the certificate no more."""
    async with asyncio.timeout(20):
        while True:
            try:
                session = await broker.connect(name, client_id="probe", **files)
            except TransportError:
                return
            await session.close()
            await asyncio.sleep(0.02)


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())
