"""Makes a controller's folder: settings, authority, certificates, signed repository, broker configuration, database, first API token.

Every step is made or kept, so that a second run completes what a killed one began, and never makes a key anew.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import func, select

from cloud_sync.controller import audit, mosquitto
from cloud_sync.controller.authority import Authority, moment
from cloud_sync.controller.engine import open_database
from cloud_sync.controller.schema import api_tokens
from cloud_sync.controller.settings import FILE, RESERVED, Settings, load
from cloud_sync.controller.signing.files import is_changing, replace
from cloud_sync.controller.tokens import Role, create_token
from cloud_sync.discovery import addresses
from edge_runtime.errors import InputError

_NAMES = re.compile(r"(?m)^names: \[[^\]\n]*\]")


@dataclass
class Outcome:
    """What `initialize` did. `token` is the text of an API token, if one was made: it cannot be had again."""

    folder: Path
    tenant: str = ""
    url: str = ""
    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    token: str | None = None

    def note(self, what: str, made: bool) -> None:
        (self.made if made else self.kept).append(what)


def initialize(
    folder: Path,
    names: Sequence[str] = (),
    *,
    tenant: str | None = None,
    database: str | None = None,
    passphrase: bytes | None = None,
    new_token: bool = False,
) -> Outcome:
    """Makes what is missing. `passphrase` encrypts the offline keys. Raises InputError for what contradicts what is there."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    outcome = Outcome(folder.resolve())
    outcome.note(FILE, _write_settings(folder, names, tenant, database))
    settings = load(folder)
    outcome.tenant, outcome.url = settings.tenant, settings.url
    _make_identity(settings, outcome)
    _make_repository(settings, passphrase, outcome)
    outcome.note("mosquitto configuration", mosquitto.write_configuration(settings))
    if not settings.broker_acl.exists():
        mosquitto.write_access_list(settings)
    outcome.token = asyncio.run(_first_token(settings, new_token))
    outcome.note("API token", outcome.token is not None)
    return outcome


def open_authority(settings: Settings, now_wall_ns: int | None = None) -> Authority:
    """The authority of a controller that was initialised. Renews the controller's own certificates in their last third and writes the
    broker's configuration by the settings. To be called at start and every day."""
    authority = Authority(settings.ca, settings.ca_key)
    now = moment(time.time_ns() if now_wall_ns is None else now_wall_ns)
    authority.ensure_server(settings.server_cert, settings.server_key, server_names(settings), now)
    for name in RESERVED:
        authority.ensure_client(*settings.client(name), name, now)
    mosquitto.write_configuration(settings)
    return authority


def server_names(settings: Settings) -> list[str]:
    """Everything by which the server may be reached: the names given, the machine's own, its addresses."""
    host = socket.gethostname()
    own = [host, f"{host}.local"] if "." not in host else [host]
    return list(dict.fromkeys([*settings.file.names, *own, "localhost", "127.0.0.1", "::1", *addresses()]))


def _write_settings(folder: Path, names: Sequence[str], tenant: str | None, database: str | None) -> bool:
    path = folder / FILE
    if not path.exists():
        replace(path, _settings_text(names, tenant, database).encode(), mode=0o600)
        try:
            load(folder)
        except InputError:
            path.unlink()
            raise
        return True
    settings = load(folder)
    for key, given, present in (("tenant", tenant, settings.tenant), ("database", database, settings.file.database)):
        if given is not None and given != present:
            raise InputError(f"{path} says {key}: {present}, not {given}; a controller keeps its {key}, or edit the file knowing why")
    added = [name for name in names if name not in settings.file.names]
    if not added:
        return False
    text = path.read_text()
    wanted = _names_line([*settings.file.names, *added])
    if len(_NAMES.findall(text)) != 1:
        raise InputError(f"{path}: add {', '.join(added)} to `names` yourself: the key is not on one line")
    replace(path, _NAMES.sub(lambda _: wanted, text).encode(), mode=0o600)
    return True


def _settings_text(names: Sequence[str], tenant: str | None, database: str | None) -> str:
    return (
        "# The controller's settings. `edge-runtime controller init` made this file and never overwrites what you change.\n"
        "schema: 1\n"
        f"tenant: {tenant or 'default'}\n"
        f"{_names_line(names)}  # by which gateways and people reach this machine, the first one is shown\n"
        f"database: {_quoted(database or 'data/controller.db')}  # a file in this folder, or postgresql://USER@HOST/NAME\n"
        "api: {port: 8443}\n"
        "broker: {port: 8883}\n"
        "certificates: {days: 7, grace_days: 365}  # a gateway's certificate; how long after its end it may still be renewed\n"
        "discovery: true  # announce the controller on the local network, for `edge-runtime join` without a URL\n"
    )


def _names_line(names: Sequence[str]) -> str:
    return f"names: [{', '.join(_quoted(name) for name in names)}]"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _make_identity(settings: Settings, outcome: Outcome) -> None:
    (settings.folder / "ca").mkdir(exist_ok=True)
    now = moment(time.time_ns())
    made = not settings.ca.exists()
    if made:
        Authority.create(settings.ca, settings.ca_key, f"edge-runtime {settings.tenant}"[:64], now)
    outcome.note("certificate authority", made)
    authority = Authority(settings.ca, settings.ca_key)
    outcome.note("server certificate", authority.ensure_server(settings.server_cert, settings.server_key, server_names(settings), now))
    own = [authority.ensure_client(*settings.client(name), name, now) for name in RESERVED]
    outcome.note("controller certificates", any(own))
    if not settings.crl.exists():
        replace(settings.crl, authority.revocations((), now))


def _make_repository(settings: Settings, passphrase: bytes | None, outcome: Outcome) -> None:
    from cloud_sync.controller.signing import Repository

    metadata = settings.folder / "repository/metadata"
    if (metadata / "timestamp.json").exists() or is_changing(metadata):
        Repository.open(settings.folder)
        outcome.note("signed repository", False)
        return
    keys = settings.folder / "keys"
    if keys.exists():  # of a run that was killed before anything was signed with them
        keys.rename(settings.folder / f"keys.unused-{time.time_ns()}")
    Repository.create(settings.folder, passphrase=passphrase)
    outcome.note("signed repository", True)


async def _first_token(settings: Settings, wanted: bool) -> str | None:
    """A token where there is none yet, or when one is `wanted`."""
    if settings.file.database == "data/controller.db":
        (settings.folder / "data").mkdir(mode=0o700, exist_ok=True)
    database = await open_database(settings.database_url)
    try:
        async with database.engine.begin() as connection:
            count = (await connection.execute(select(func.count()).select_from(api_tokens))).scalar_one()
            if count and not wanted:
                return None
            token = await create_token(connection, "init", Role.APPROVER)
            await audit.append(connection, "init", "token", "init", {"role": Role.APPROVER.value})
        return token
    finally:
        await database.close()
