"""Where the controller's database is: a file, or a PostgreSQL server by URL. Pure; a password in it is never shown."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from edge_runtime.errors import InputError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_SQLITE = ("sqlite", "sqlite+aiosqlite")
_POSTGRES = ("postgresql", "postgres", "postgresql+asyncpg")
_SECRET = re.compile(r"(?i)((?:^|[?&])password=)[^&]*")


@dataclass(frozen=True, slots=True)
class Address:
    """One database: either `path` or `dsn` is set. `shown` may be logged; `dsn` may hold a password."""

    shown: str
    path: Path | None = None
    dsn: str = field(default="", repr=False)

    @property
    def is_sqlite(self) -> bool:
        return self.path is not None


def parse_address(text: str | Path) -> Address:
    """A path, `sqlite:///path` or `postgresql://user@host/name` (libpq's form). Raises InputError for anything else."""
    found = None if isinstance(text, Path) else _SCHEME.match(text)
    if found is None or isinstance(text, Path):
        return _file(str(text))
    scheme = found[1].lower()
    if scheme in _SQLITE:
        return _file(_sqlite_path(text))
    if scheme in _POSTGRES:
        return _server(text)
    raise InputError(f"expected a file, sqlite:///FILE or postgresql://USER@HOST/NAME as database, got the scheme `{scheme[:40]}`")


def _file(text: str) -> Address:
    if not text or text == ":memory:":
        raise InputError("a controller's database is a file or a PostgreSQL server: what is only in memory cannot be acknowledged")
    return Address(text, Path(text))


def _sqlite_path(text: str) -> str:
    parts = urlsplit(text)
    if parts.netloc or parts.query:
        raise InputError("expected sqlite:///FILE (four slashes for an absolute path) without a host or options")
    return unquote(parts.path.removeprefix("/"))


def _server(text: str) -> Address:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as err:
        raise InputError("expected postgresql://USER:PASSWORD@HOST:PORT/NAME, got a URL that cannot be read") from err
    user, at, host = parts.netloc.rpartition("@")
    netloc = f"{user.partition(':')[0]}{':***' if ':' in user else ''}{at}{host}"
    shown = urlunsplit(("postgresql", netloc, parts.path, _SECRET.sub(r"\1***", parts.query), ""))
    return Address(shown, None, urlunsplit(("postgresql", parts.netloc, parts.path, parts.query, "")))
