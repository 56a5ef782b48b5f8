"""The controller's certificate authority (X.509, ECDSA P-256): makes its certificates, judges requests, signs revocations.

It keeps no list of what it issued: `enrolment` does, in the database. Nothing of a request is taken over but its key.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cloud_sync.controller.signing.files import replace
from edge_runtime.errors import InputError, MissingDependency

try:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ModuleNotFoundError as err:
    raise MissingDependency("cryptography", "controller") from err

MAX_REQUEST_BYTES = 8 * 1024
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""The authority's and the server's certificates hold from here on: a gateway without a battery clock boots in 1970."""

_CA_DAYS = 25 * 365
_OWN_DAYS = 825
_OWN_MARGIN = timedelta(days=_OWN_DAYS / 3)
_CRL_DAYS = 10 * 365  # a broker refuses everyone once its list has expired
_BACKDATED = timedelta(days=1)
_CRL_BACKDATED = timedelta(hours=1)
_SECOND = timedelta(seconds=1)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SERVER = ExtendedKeyUsageOID.SERVER_AUTH
_CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(frozen=True, slots=True)
class Request:
    """A certificate request that is in order: the name it asks for, and its key."""

    name: str
    key: ec.EllipticCurvePublicKey
    key_sha256: str


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate. Times are wall clock nanoseconds; `serial` is lower-case hex."""

    serial: str
    name: str
    sha256: str
    key_sha256: str
    not_before_wall_ns: int
    not_after_wall_ns: int
    pem: str


class Authority:
    """Opens the authority whose certificate and key are `ca` and `key`. Raises InputError when they cannot be used."""

    def __init__(self, ca: Path, key: Path) -> None:
        self._certificate = _load_certificate(ca)
        self._key = _load_key(key)
        if self._certificate.public_key() != self._key.public_key():
            raise InputError(f"{key} is not the key of {ca}; restore both from the same backup")

    @classmethod
    def create(cls, ca: Path, key: Path, name: str, now: datetime) -> Authority:
        """A new authority where there is none; the key reaches the disk first, so that a killed creation can be taken up again."""
        secret = _load_key(key) if key.exists() else _new_key(key)
        subject = _subject(name)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(secret.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(EPOCH)
            .not_valid_after(now + timedelta(days=_CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(secret.public_key()), critical=False)
            .sign(secret, hashes.SHA256())
        )
        replace(ca, made.public_bytes(Encoding.PEM))
        return cls(ca, key)

    @property
    def pem(self) -> str:
        """The authority's certificate."""
        return self._certificate.public_bytes(Encoding.PEM).decode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the authority's certificate (DER), hex: what a join token pins."""
        return self._certificate.fingerprint(hashes.SHA256()).hex()

    def issue(self, name: str, key: ec.EllipticCurvePublicKey, now: datetime, days: float) -> Issued:
        """A client's certificate for `name`, valid since yesterday: the clocks of a fleet differ."""
        return _issued(self._sign(_subject(name), key, now - _BACKDATED, now + timedelta(days=days), _CLIENT, ()))

    def ensure_server(self, cert: Path, key: Path, names: Sequence[str], now: datetime) -> bool:
        """A server's certificate for `names` with the authority's behind it; made anew when names changed or it ends. True: made."""
        secret = _load_key(key) if key.exists() else _new_key(key)
        wanted = _alternatives(names)
        if self._serves(cert, secret, wanted, now):
            return False
        made = self._sign(_subject(names[0][:64]), secret.public_key(), EPOCH, now + timedelta(days=_OWN_DAYS), _SERVER, wanted)
        replace(cert, made.public_bytes(Encoding.PEM) + self.pem.encode())
        return True

    def ensure_client(self, cert: Path, key: Path, name: str, now: datetime) -> bool:
        """The controller's own client certificate; made anew when it ends. True: made."""
        secret = _load_key(key) if key.exists() else _new_key(key)
        if self._serves(cert, secret, (), now):
            return False
        made = self._sign(_subject(name), secret.public_key(), EPOCH, now + timedelta(days=_OWN_DAYS), _CLIENT, ())
        replace(cert, made.public_bytes(Encoding.PEM))
        return True

    def revocations(self, serials: Iterable[tuple[str, int]], now: datetime, before: bytes = b"") -> bytes:
        """A list of revoked certificates, each `(serial, revoked wall ns)`, as PEM. `before` is the list that it replaces.

        OpenSSL takes of two lists the one with the later date, and none of the future: so each is dated in the past hour, a second
        after the one before.
        """
        dated = now - _CRL_BACKDATED
        last = _list_date(before)
        if last is not None and dated <= last < now - _SECOND:
            dated = last + _SECOND
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(dated)
            .next_update(dated + timedelta(days=_CRL_DAYS))
            .add_extension(x509.CRLNumber(int(dated.timestamp())), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        for serial, revoked_ns in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(moment(revoked_ns))
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        since: datetime,
        until: datetime,
        use: x509.ObjectIdentifier,
        names: Sequence[x509.GeneralName],
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(since)
            .not_valid_after(min(until, self._certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def _serves(self, cert: Path, key: ec.EllipticCurvePrivateKey, names: Sequence[x509.GeneralName], now: datetime) -> bool:
        if not cert.exists():
            return False
        found = _load_certificate(cert)
        if found.issuer != self._certificate.subject or found.public_key() != key.public_key():
            return False
        try:
            present = list(found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        except x509.ExtensionNotFound:
            present = []
        return set(names) <= set(present) and found.not_valid_after_utc - now > _OWN_MARGIN


def read_request(text: str) -> Request:
    """Judges a certificate request (PKCS #10, PEM). Raises InputError for any that is not exactly what `join` makes."""
    if len(text) > MAX_REQUEST_BYTES:
        raise InputError(f"a certificate request has at most {MAX_REQUEST_BYTES} characters, got {len(text)}")
    try:
        request = x509.load_pem_x509_csr(text.encode())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a name's length, which is judged below
            names = [str(attribute.value) for attribute in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        key, sound = request.public_key(), request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise InputError(f"the certificate request cannot be read: {err}") from err
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InputError("the certificate request has a key of another kind; expected ECDSA on P-256")
    if not sound:
        raise InputError("the certificate request is not signed by the key that it holds")
    if len(names) != 1 or not is_name(names[0]):
        raise InputError(f"the certificate request names {names!r:.200}; expected one common name: {NAME_RULE}")
    return Request(names[0], key, _key_sha256(key))


def read_certificate(der: bytes) -> Issued:
    """What a certificate says that TLS has verified already. Raises InputError when it is none of a gateway's."""
    certificate = x509.load_der_x509_certificate(der)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1 or not isinstance(certificate.public_key(), ec.EllipticCurvePublicKey):
        raise InputError("the certificate is none that this controller gives to gateways")
    return _issued(certificate)


def certificate_key(der: bytes) -> ec.EllipticCurvePublicKey:
    """The key that a gateway's certificate is for."""
    key = x509.load_der_x509_certificate(der).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InputError("the certificate has a key of another kind; expected ECDSA on P-256")
    return key


NAME_RULE = "up to 64 letters, digits, `_`, `.` or `-`, a letter or digit first"


def is_name(text: str) -> bool:
    """Whether a gateway may be called so."""
    return _NAME.fullmatch(text) is not None


def moment(wall_ns: int) -> datetime:
    """A wall time as certificates take it: whole seconds, UTC."""
    return datetime.fromtimestamp(wall_ns // 10**9, UTC)


def _list_date(pem: bytes) -> datetime | None:
    try:
        return x509.load_pem_x509_crl(pem).last_update_utc
    except ValueError:
        return None


def _issued(certificate: x509.Certificate) -> Issued:
    name = str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return Issued(
        serial=f"{certificate.serial_number:x}",
        name=name,
        sha256=certificate.fingerprint(hashes.SHA256()).hex(),
        key_sha256=_key_sha256(key),
        not_before_wall_ns=int(certificate.not_valid_before_utc.timestamp()) * 10**9,
        not_after_wall_ns=int(certificate.not_valid_after_utc.timestamp()) * 10**9,
        pem=certificate.public_bytes(Encoding.PEM).decode(),
    )


def _key_sha256(key: ec.EllipticCurvePublicKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _alternatives(names: Sequence[str]) -> list[x509.GeneralName]:
    return [_alternative(name) for name in dict.fromkeys(names)]


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _new_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    replace(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
    return key


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        mode, text = path.stat().st_mode & 0o777, path.read_bytes()
    except OSError as err:
        raise InputError(f"{path}: {err.strerror}; complete the controller: edge-runtime controller init") from err
    if mode & 0o077:
        raise InputError(f"{path} can be read by others (mode {mode:o}); chmod 600 it, and make a new one if others had access")
    try:
        key = load_pem_private_key(text, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise InputError(f"{path} is no private key that can be read; restore it from a backup") from err
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{path}: expected an ECDSA key")
    return key


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as err:
        raise InputError(f"{path}: {err.strerror}; complete the controller: edge-runtime controller init") from err
    except ValueError as err:
        raise InputError(f"{path} is no certificate that can be read; restore it from a backup") from err
