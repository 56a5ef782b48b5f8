"""Attacks on joining: tokens, certificate requests, and whoever stands between. A refusal leaves the token as it was."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import select

from cloud_sync.controller import audit
from cloud_sync.controller.client import Client, Profile
from cloud_sync.controller.schema import audit as audit_table
from cloud_sync.controller.schema import certificates, join_tokens
from cloud_sync.controller.tokens import Role, create_token
from cloud_sync.https import Place
from cloud_sync.identity import Identity
from cloud_sync.join import fetch_ca, join, pinned, request_for
from edge_runtime.errors import EdgeRuntimeError, InputError, TransportError


def csr_of(name: str, key: Any = None, algorithm: Any = None) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that are too short or too long
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name, _validate=False)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject)
    key = key or ec.generate_private_key(ec.SECP256R1())
    return made.sign(key, algorithm or hashes.SHA256()).public_bytes(Encoding.PEM).decode()


async def ask_to_join(controller: Any, token: str, csr: str) -> tuple[int, Any]:
    answer: tuple[int, Any] = await controller.call("POST", "/v1/join", body={"token": token, "csr": csr})
    return answer


async def rows(controller: Any, table: Any) -> list[Any]:
    async with controller.context.database.engine.connect() as connection:
        return list(await connection.execute(select(table)))


async def test_a_token_used_twice(controller: Any, tmp_path: Path) -> None:
    token = await controller.token()
    await controller.join("gw-1", token)
    with pytest.raises(InputError, match="used already"):
        await controller.join("gw-2", token)
    assert [row.gateway for row in await rows(controller, certificates)] == ["gw-1"]


async def test_a_token_used_by_many_at_once(controller: Any) -> None:
    token = await controller.token()
    names = [f"gw-{number}" for number in range(12)]
    answers = await asyncio.gather(*(ask_to_join(controller, token, csr_of(name)) for name in names))
    assert sorted(status for status, _ in answers) == [200] + [401] * 11
    assert len(await rows(controller, certificates)) == 1


async def test_two_tokens_for_one_name_at_once(controller: Any) -> None:
    tokens = [await controller.token() for _ in range(6)]
    answers = await asyncio.gather(*(ask_to_join(controller, token, csr_of("gw-1")) for token in tokens))
    assert sorted(status for status, _ in answers) == [200] + [409] * 5
    assert len(await rows(controller, certificates)) == 1


async def test_an_expired_token(controller: Any) -> None:
    token = await controller.token(hours=1)
    controller.advance(1 / 24)
    with pytest.raises(InputError, match="expired"):
        await controller.join("gw-1", token)


async def test_a_token_for_another_gateway(controller: Any) -> None:
    token = await controller.token("gw-1")
    with pytest.raises(InputError, match="for the gateway `gw-1`"):
        await controller.join("gw-2", token)
    assert (await controller.join("gw-1", token)).gateway == "gw-1"


async def test_guessed_tokens_are_slowed_down_and_written_down(controller: Any) -> None:
    token = await controller.token()
    prefix, token_id, secret, pin = token.split(".")
    wrong = [f"{prefix}.{token_id}.{secret[:-1]}{'A' if secret[-1] != 'A' else 'B'}.{pin}", f"{prefix}.{'0' * 12}.{secret}.{pin}"]
    wrong += [f"era1.{token_id}.{secret}", "", ".", "....", "ert1", token[:20], token.replace(token_id, "' OR 1=1 --")]
    statuses = [(await ask_to_join(controller, text, csr_of("gw-1")))[0] for text in [*wrong, *wrong]]
    assert statuses[:10] == [401] * 10
    assert statuses[10:] == [429] * 8
    assert (await ask_to_join(controller, token, csr_of("gw-1")))[0] == 429
    controller.advance(0.01)
    assert (await ask_to_join(controller, token, csr_of("gw-1")))[0] == 200
    refused = [row for row in await rows(controller, audit_table) if row.action == "join_refused"]
    assert len(refused) == 10
    async with controller.context.database.engine.connect() as connection:
        assert await audit.verify(connection) is None


async def test_only_a_hash_of_a_token_is_kept(controller: Any) -> None:
    token = await controller.token()
    secret = token.split(".")[2]
    (row,) = await rows(controller, join_tokens)
    assert row.secret_sha256 == hashlib.sha256(secret.encode()).hexdigest()
    database = Path(controller.settings.database_url)
    assert not [path for path in database.parent.iterdir() if secret.encode() in path.read_bytes()]


_NAMES = ["", "#", "+", "gw/1", "gw+1", "gw 1", "-gw", "gw\n", "gw\0x", "ü", "controller", "controller-publisher", "$SYS", ".", "a" * 65]


@pytest.mark.parametrize("name", _NAMES)
async def test_a_request_for_a_name_that_is_none(controller: Any, name: str) -> None:
    token = await controller.token()
    status, _ = await ask_to_join(controller, token, csr_of(name))
    assert status == 422
    assert await rows(controller, certificates) == []
    assert (await rows(controller, join_tokens))[0].used_wall_ns == 0


async def test_a_request_with_another_name_than_the_tokens(controller: Any) -> None:
    status, answer = await ask_to_join(controller, await controller.token("gw-1"), csr_of("gw-2"))
    assert (status, "gw-1" in answer["error"]) == (401, True)


def _other_kinds() -> dict[str, str]:
    two_names = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text) for text in ("gw-1", "gw-2")])
    key = ec.generate_private_key(ec.SECP256R1())
    two = x509.CertificateSigningRequestBuilder().subject_name(two_names).sign(key, hashes.SHA256())
    sound = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gw-1")]))
    der = bytearray(sound.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))
    der[-1] ^= 1
    broken = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    return {
        "rsa key": csr_of("gw-1", rsa.generate_private_key(65537, 2048)),
        "another curve": csr_of("gw-1", ec.generate_private_key(ec.SECP384R1())),
        "two names": two.public_bytes(Encoding.PEM).decode(),
        "not signed by its key": broken,
        "truncated": csr_of("gw-1")[:200],
        "no request": "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        "empty": "",
        "huge": "A" * 8000,
    }


_KINDS = ["rsa key", "another curve", "two names", "not signed by its key", "truncated", "no request", "empty", "huge"]


@pytest.mark.parametrize("kind", _KINDS)
async def test_a_request_that_join_does_not_make(controller: Any, kind: str) -> None:
    status, answer = await ask_to_join(controller, await controller.token(), _other_kinds()[kind])
    assert status == 422, answer
    assert await rows(controller, certificates) == []


async def test_a_request_of_a_megabyte(controller: Any) -> None:
    status, _ = await ask_to_join(controller, await controller.token(), "A" * 1_000_000)
    assert status == 422


async def test_an_ed25519_request(controller: Any) -> None:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gw-1")])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(ed25519.Ed25519PrivateKey.generate(), None)
    status, _ = await ask_to_join(controller, await controller.token(), made.public_bytes(Encoding.PEM).decode())
    assert status == 422


async def test_nothing_of_a_request_is_taken_over_but_name_and_key(controller: Any) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [x509.NameAttribute(x509.NameOID.COMMON_NAME, "gw-1"), x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "controller")]
    )
    wanted = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    status, answer = await ask_to_join(controller, await controller.token(), wanted.public_bytes(Encoding.PEM).decode())
    assert status == 200
    made = x509.load_pem_x509_certificate(answer["certificate"].encode())
    assert made.subject == x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gw-1")])
    assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    with pytest.raises(x509.ExtensionNotFound):
        made.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    uses = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(uses) == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]


async def test_a_wrong_pin_sends_nothing(controller: Any, tmp_path: Path) -> None:
    token = await controller.token()
    other = token[:-64] + "0" * 64
    with pytest.raises(EdgeRuntimeError, match="Nothing was sent"):
        await join(controller.place, other, "gw-1", tmp_path / "gw-1")
    assert (await rows(controller, join_tokens))[0].used_wall_ns == 0
    assert [row.action for row in await rows(controller, audit_table) if "refused" in row.action] == []


async def test_a_proxy_that_shows_the_right_authority_with_its_own_server(controller: Any, other_authority: Any, tmp_path: Path) -> None:
    """It hands on the true authority, but has no certificate of it: the token is not sent to it."""
    received: list[bytes] = []
    cert, key = tmp_path / "proxy.pem", tmp_path / "proxy.key"
    other_authority.ensure_server(cert, key, ["localhost"], datetime.now(UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    body = b'{"ca":%s}' % _json(controller.context.authority.pem)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as proxy:
        place = Place("localhost", proxy.sockets[0].getsockname()[1])
        token = await controller.token()
        assert await fetch_ca(place, pinned(token))
        with pytest.raises(TransportError, match="certificate refused"):
            await join(place, token, "gw-1", tmp_path / "gw-1")
    assert all(request.startswith(b"GET /v1/ca ") for request in received)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("not HTTP", b"SSH-2.0-OpenSSH\r\n"),
        ("not JSON", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        ("endless", b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_500_000),
        ("cut off", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{}"),
        ("deep", b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000),
        ("empty", b""),
        ("list", b"HTTP/1.1 200 OK\r\n\r\n[]"),
    ],
)
async def test_answers_that_are_none(controller: Any, name: str, answer: bytes) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(controller.settings.server_cert, controller.settings.server_key)

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        try:
            await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()

    async with await asyncio.start_server(reply, "127.0.0.1", 0, ssl=context) as server:
        with pytest.raises(TransportError):
            await fetch_ca(Place("localhost", server.sockets[0].getsockname()[1]), "0" * 64)


async def test_a_name_that_is_taken(controller: Any, tmp_path: Path) -> None:
    await controller.join("gw-1")
    with pytest.raises(InputError, match="joined already"):
        await controller.join("gw-1", folder=tmp_path / "thief")
    assert len(await rows(controller, certificates)) == 1


async def test_a_name_may_be_taken_anew_when_the_operator_says_so(controller: Any, tmp_path: Path) -> None:
    await controller.join("gw-1")
    await controller.join("gw-1", await controller.token("gw-1", rejoin=True), tmp_path / "new")
    assert (await controller.call("GET", "/v1/whoami", controller.identity("gw-1")))[0] == 403
    assert await controller.call("GET", "/v1/whoami", Identity(tmp_path / "new/trust")) == (200, {"gateway": "gw-1"})


@pytest.mark.parametrize(
    ("role", "path", "body"),
    [(Role.VIEWER, "/v1/join-tokens", {"gateway": "gw-1"}), (Role.OPERATOR, "/v1/gateways/gw-1/revoke", {"reason": "x"})],
)
async def test_an_operator_without_the_role(controller: Any, role: Role, path: str, body: dict[str, Any]) -> None:
    await controller.join("gw-1")
    async with controller.context.database.engine.begin() as connection:
        token = await create_token(connection, "eve", role)
    client = Client(Profile(controller.place.url, token, str(controller.settings.ca)))
    with pytest.raises(EdgeRuntimeError, match="403"):
        await asyncio.to_thread(client.post, path, body)
    assert len(await rows(controller, join_tokens)) == 1
    assert (await controller.call("GET", "/v1/whoami", controller.identity("gw-1")))[0] == 200
    assert "refused" in [row.action for row in await rows(controller, audit_table)]


def test_a_private_key_is_its_owners_alone(tmp_path: Path) -> None:
    request_for(tmp_path / "gateway.key", "gw-1")
    assert (tmp_path / "gateway.key").stat().st_mode & 0o777 == 0o600


def _json(text: str) -> bytes:
    import msgspec

    return msgspec.json.encode(text)
