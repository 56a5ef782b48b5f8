"""The operator's side of the REST API: one request at a time over HTTPS, with the standard library. Used by `fleet`."""

from __future__ import annotations

import http.client
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from edge_runtime.errors import EdgeRuntimeError, InputError, TransportError

_TIMEOUT_S = 30.0
_MAX_ANSWER_BYTES = 64 * 1024 * 1024


class Profile(msgspec.Struct, frozen=True):
    """Where the controller is, what signs its certificate, and the token to show."""

    url: str
    token: str
    ca: str | None = None

    def save(self, path: Path) -> None:
        """Writes it for its owner's eyes only."""
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")


def default_profile_path() -> Path:
    """`$EDGE_RUNTIME_PROFILE`, else in the XDG configuration folder."""
    named = os.environ.get("EDGE_RUNTIME_PROFILE")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(named) if named else config / "edge-runtime" / "profile.json"


def load_profile(path: Path) -> Profile:
    """The profile in a file; its `ca` is relative to the file. Raises InputError saying how to make one."""
    try:
        profile = msgspec.json.decode(path.read_bytes(), type=Profile)
    except OSError as err:
        raise InputError(f"{path}: {err.strerror}. Make a profile: edge-runtime fleet login URL --token T --ca FILE") from err
    except msgspec.MsgspecError as err:
        raise InputError(f"{path}: {err}. Make it again: edge-runtime fleet login URL --token T --ca FILE") from err
    return msgspec.structs.replace(profile, ca=str(path.parent / profile.ca) if profile.ca else None)


class Client:
    """Speaks to one controller. Raises TransportError when it is not reached, InputError for what it refused as wrong."""

    def __init__(self, profile: Profile) -> None:
        url = urlsplit(profile.url)
        if url.scheme not in ("https", "http") or not url.hostname:
            raise InputError(f"expected a URL such as https://controller:8443, got {profile.url!r}")
        self._url = url
        self._token = profile.token
        self._context = _context(profile.ca) if url.scheme == "https" else None

    def get(self, path: str, **query: object) -> Any:
        """A GET; query values that are None are left out."""
        given = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in query.items() if value is not None}
        return self._ask("GET", path + (f"?{urlencode(given)}" if given else ""))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """A POST of JSON."""
        return self._ask("POST", path, msgspec.json.encode(body))

    def delete(self, path: str) -> Any:
        return self._ask("DELETE", path)

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        host, port = str(self._url.hostname), self._url.port
        connection = (
            http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=self._context)
            if self._context
            else http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
        )
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            answer = response.read(_MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as err:
            raise TransportError(f"cannot reach the controller at {self._url.geturl()}: {err}") from err
        finally:
            connection.close()
        return _read(response.status, answer)


def segment(name: str) -> str:
    """A name as one part of a path."""
    return quote(name, safe="")


def _read(status: int, answer: bytes) -> Any:
    try:
        document = msgspec.json.decode(answer) if answer else None
    except msgspec.MsgspecError as err:
        raise TransportError(f"the controller answered {status} with something that is not JSON") from err
    if status < 400:
        return document
    text = str(document.get("error", document)) if isinstance(document, dict) else str(document)
    problems = document.get("problems", []) if isinstance(document, dict) else []
    if status in (400, 404, 409, 413, 422) and not problems:
        raise InputError(text)
    if problems:
        raise InputError("\n".join(f"deployment:{p.get('line', 0)}:{p['key']}: {p['message']}" for p in problems))
    raise EdgeRuntimeError(f"the controller refused ({status}): {text}")


def _context(ca: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as err:
        raise InputError(f"cannot read certificates from {ca}: {err}") from err
