"""`edge-runtime join`: makes a gateway's key, has the controller sign it, and writes the gateway file. The key never leaves the machine.

Killed at any point, it is run again: the key stays, and the controller gives the same certificate again for the same key and token.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import re
import socket
import ssl
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from cloud_sync.discovery import Found, discover
from cloud_sync.https import Place, ask, error_text, parse_url
from cloud_sync.identity import Identity, parse_validity, replace
from edge_runtime.errors import EdgeRuntimeError, InputError, MissingDependency, TransportError

TRUST = "trust"
GATEWAY_FILE = "gateway.yaml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_TOKEN = re.compile(rf"ert1\.[0-9a-f]{{1,64}}\.[A-Za-z0-9_-]{{16,128}}\.([0-9a-f]{{64}})(?:\.({_NAME.pattern}))?")
_LISTEN_S = 3.0


class BrokerAnswer(msgspec.Struct):
    host: str | None
    port: int


class JoinAnswer(msgspec.Struct):
    """What POST /v1/join answers with."""

    certificate: str
    ca: str
    gateway: str
    tenant: str
    trust_root: str
    broker: BrokerAnswer


@dataclass(frozen=True, slots=True)
class Joined:
    """A gateway that belongs to a fleet now. `kept`: the gateway file was there already and stays as it is."""

    gateway: str
    tenant: str
    url: str
    file: Path
    not_after_wall_ns: int
    kept: bool


class Command:
    """Finds the controller by itself when no URL is given."""

    summary = "make this machine a gateway of a controller's fleet"
    example = "edge-runtime join https://controller:8443 --token ert1..."

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument("url", nargs="?", metavar="URL", help="the controller's API (default: the one on this network, found by mDNS)")
        token = parser.add_mutually_exclusive_group(required=True)
        token.add_argument("--token", metavar="T", help="a join token, made by: edge-runtime fleet token")
        token.add_argument("--token-file", metavar="FILE", help="file that holds the token; - for standard input")
        parser.add_argument("--id", metavar="NAME", help="the gateway's name (default: the token's, else this machine's)")
        parser.add_argument("--dir", type=Path, default=default_dir(), metavar="DIR", help="where the files go (default: %(default)s)")
        parser.add_argument("--force", action="store_true", help=f"replace the {GATEWAY_FILE} that is there")
        parser.add_argument("--json", action="store_true", help="print one JSON document")

    def run(self, args: Namespace) -> int:
        token = args.token if args.token is not None else _read_token(args.token_file)
        done = asyncio.run(_run(args, token.strip()))
        found = {"gateway": done.gateway, "tenant": done.tenant, "url": done.url, "file": str(done.file), "file_kept": done.kept}
        print(json.dumps(found | {"not_after_wall_ns": done.not_after_wall_ns}) if args.json else _story(done))
        return 0


def default_dir() -> Path:
    """`/etc/edge-runtime` for root, else the folder one is in."""
    return Path("/etc/edge-runtime") if os.geteuid() == 0 else Path()


async def join(place: Place, token: str, name: str, folder: Path, *, force: bool = False) -> Joined:
    """Joins and writes `folder/trust` and the gateway file. Raises InputError for what was refused, TransportError, DeadlineExceeded."""
    pin = pinned(token)
    if not _NAME.fullmatch(name):
        raise InputError(f"--id: expected up to 64 letters, digits, `_`, `.` or `-`, a letter or digit first; got {name[:100]!r}")
    _check_folder(folder, name, force=force)
    identity = Identity(folder / TRUST)
    identity.folder.mkdir(parents=True, exist_ok=True)
    csr = request_for(identity.key, name)
    ca = await fetch_ca(place, pin)
    status, found = await ask(place, "POST", "/v1/join", _trusting(ca), {"token": token, "csr": csr})
    if status != 200:
        kind = InputError if status in (401, 403, 409, 422) else EdgeRuntimeError
        raise kind(f"{place.url} refused ({status}): {error_text(found)}")
    answer = _checked(place, found, ca, name)
    for path, text in ((identity.ca, answer.ca), (identity.trust_root, answer.trust_root), (identity.cert, answer.certificate)):
        replace(path, text.encode())
    path = folder / GATEWAY_FILE
    kept = path.exists() and not force
    if not kept:
        replace(path, gateway_file(place, answer).encode())
    return Joined(answer.gateway, answer.tenant, place.url, path, parse_validity(answer.certificate).not_after_ns, kept)


def pinned(token: str) -> str:
    """The fingerprint of the authority that a token was made under. Raises InputError for what is no join token."""
    return _parts(token)[0]


def meant_for(token: str) -> str:
    """The gateway that a token names, or nothing. Raises InputError for what is no join token."""
    return _parts(token)[1]


def _parts(token: str) -> tuple[str, str]:
    match = _TOKEN.fullmatch(token)
    if match is None:
        hint = "; that is an API token" if token.startswith("era1.") else ""
        raise InputError(f"expected a join token (ert1...., from: edge-runtime fleet token){hint}; is it complete?")
    return match[1], match[2] or ""


async def fetch_ca(place: Place, pin: str) -> str:
    """The controller's authority (PEM), asked for without trust and compared with the pin. Nothing secret has been sent by then.

    Raises EdgeRuntimeError when whoever answers is not the controller that the token is from.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    status, found = await ask(place, "GET", "/v1/ca", context)
    ca = found.get("ca") if isinstance(found, dict) else None
    if status != 200 or not isinstance(ca, str):
        raise TransportError(f"{place.url} answered {status} to GET /v1/ca; is it a controller?")
    try:
        der = ssl.PEM_cert_to_DER_cert(ca.strip())
    except ValueError as err:
        raise TransportError(f"{place.url} sent an authority that cannot be read; is it a controller?") from err
    if not hmac.compare_digest(hashlib.sha256(der).hexdigest(), pin):
        raise EdgeRuntimeError(
            f"{place.url} is not the controller that this token is from: its authority is another. Someone may be between, "
            f"or the token is another controller's. Nothing was sent"
        )
    return ssl.DER_cert_to_PEM_cert(der)


def request_for(key_path: Path, name: str) -> str:
    """A certificate request (PEM) for `name`, by the key in a file, made when there is none. Raises MissingDependency, InputError."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
    except ModuleNotFoundError as err:
        raise MissingDependency("cryptography", "sync") from err
    if not key_path.exists():
        fresh = ec.generate_private_key(ec.SECP256R1())
        replace(key_path, fresh.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
    try:
        key = load_pem_private_key(key_path.read_bytes(), None)
    except (ValueError, TypeError) as err:
        raise InputError(f"{key_path} is no private key that can be read; remove it and join with a new token") from err
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{key_path}: expected an ECDSA key; remove it and join with a new token")
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM).decode()


def gateway_file(place: Place, answer: JoinAnswer) -> str:
    """The gateway file of one that has just joined: this machine as its hardware, the controller's broker, nothing to decide yet."""
    text = json.dumps
    return f"""\
# Written by `edge-runtime join`. Local to this machine: who it is, what it is wired to, where its controller is.
schema: 1
gateway: {{id: {text(answer.gateway)}, tenant: {text(answer.tenant)}}}
adapters:
  machine: {{driver: linux}}
sensors:
  cpu:    {{adapter: machine, channel: cpu}}
  memory: {{adapter: machine, channel: memory/available}}
  load:   {{adapter: machine, channel: load/1min}}
broker:
  host: {text(answer.broker.host or place.host)}
  port: {answer.broker.port}
  tls: {{ca: {TRUST}/ca.pem, cert: {TRUST}/gateway.pem, key: {TRUST}/gateway.key}}
controller:
  url: {text(place.url)}
  ca: {TRUST}/ca.pem
  trust_root: {TRUST}/root.json
"""


def choose(found: Sequence[Found], pin: str) -> Found:
    """The one controller whose authority is the pinned one. Raises InputError listing what was heard when that is none or several."""
    mine = [one for one in found if one.fingerprint == pin]
    if len(mine) == 1:
        return mine[0]
    lines = "".join(f"\n  {one.url}  {one.name} (tenant {one.tenant or '-'})" for one in (mine or found))
    if mine:
        raise InputError(f"several controllers of this token are on this network; name one: edge-runtime join URL --token ...{lines}")
    if found:
        raise InputError(f"none of the controllers on this network is the one that this token is from; name it by its URL. Heard:{lines}")
    raise InputError("no controller was heard on this network (mDNS); name it: edge-runtime join https://HOST:8443 --token ...")


async def _run(args: Namespace, token: str) -> Joined:
    pin = pinned(token)
    if args.url is None:
        print("looking for the controller on this network...", file=sys.stderr)
        place = parse_url(choose(await discover(_LISTEN_S), pin).url)
    else:
        place = parse_url(args.url)
    return await join(place, token, args.id or meant_for(token) or default_name(args.dir), args.dir, force=args.force)


def default_name(folder: Path, hostname: Callable[[], str] = socket.gethostname) -> str:
    """This machine's name, as far as it can be a gateway's."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", hostname().partition(".")[0]).strip("-._")[:64]
    if not name or name == "localhost":
        raise InputError("this machine has no name of its own; give the gateway one: --id NAME")
    return name


def _check_folder(folder: Path, name: str, *, force: bool) -> None:
    """A folder that holds the identity of another gateway is not reused by mistake."""
    path = folder / GATEWAY_FILE
    if not path.exists() or force:
        return
    found = re.search(r"(?m)^gateway:\s*\{?\s*(?:\n\s+)?id:\s*[\"']?([A-Za-z0-9_.-]+)", path.read_text(errors="replace"))
    if found is not None and found[1] != name:
        raise InputError(f"{path} is of the gateway `{found[1]}`, not `{name}`; use --id {found[1]}, another --dir, or --force")


def _trusting(ca: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _checked(place: Place, found: Any, ca: str, name: str) -> JoinAnswer:
    try:
        answer = msgspec.convert(found, JoinAnswer)
        parse_validity(answer.certificate)
        ssl.create_default_context(cadata=answer.ca)
    except (msgspec.ValidationError, ValueError, ssl.SSLError) as err:
        raise TransportError(f"{place.url} answered with something that is not an enrolment: {err}") from err
    if answer.gateway != name or answer.ca.strip() != ca.strip():
        raise TransportError(f"{place.url} enrolled `{answer.gateway[:64]}` where `{name}` was asked for, or changed its authority")
    return answer


def _read_token(path: str) -> str:
    try:
        return sys.stdin.readline() if path == "-" else Path(path).read_text().partition("\n")[0]
    except (OSError, UnicodeDecodeError) as err:
        raise InputError(f"--token-file: cannot read {path}: {err}") from err


def _story(done: Joined) -> str:
    kept = f"\n{done.file} was there and stays as it is; see that its `broker` and `controller` name the new files." if done.kept else ""
    return (
        f"This machine is the gateway `{done.gateway}` of {done.url} (tenant {done.tenant}).{kept}\n"
        f"Check it, then run it:\n  edge-runtime check {done.file}\n  edge-runtime run --config {done.file}"
    )
