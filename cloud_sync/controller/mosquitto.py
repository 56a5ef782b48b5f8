"""What mosquitto is told: mutual TLS, who may read and write what, limits; and how a running one takes it up again. Starts no broker.

A gateway's name at the broker is its certificate's common name, and also its client id, so that nobody takes over another's session.
"""

from __future__ import annotations

import os
import pwd
import signal
from collections.abc import Iterable
from pathlib import Path

from cloud_sync.controller.settings import RESERVED, Settings
from cloud_sync.controller.signing.files import replace
from cloud_sync.messages import MAX_MESSAGE_BYTES
from cloud_sync.topics import ROOT

_OWN = "mosquitto/conf.d"
_PACKET_BYTES = MAX_MESSAGE_BYTES + 64 * 1024


def configuration(settings: Settings) -> str:
    """The text of mosquitto.conf, for mosquitto 2.0 and later."""
    folder = settings.folder
    lines = [
        "# Written by `edge-runtime controller init`; your own settings belong in conf.d/*.conf, which this includes.",
        f"listener {settings.broker.port} {settings.broker.host}".rstrip(),
        f"cafile {settings.ca}",
        f"certfile {settings.server_cert}",
        f"keyfile {settings.server_key}",
        f"crlfile {settings.crl}",
        "tls_version tlsv1.2",
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
        "allow_anonymous false",
        f"acl_file {settings.broker_acl}",
        f"pid_file {settings.broker_pid}",
        f"user {pwd.getpwuid(os.geteuid()).pw_name}",
        "",
        "persistence true",
        f"persistence_location {folder / 'mosquitto/data'}/",
        "autosave_interval 10",
        "autosave_on_changes false",
        "persistent_client_expiration 7d",
        "",
        f"max_packet_size {_PACKET_BYTES}",
        "max_inflight_messages 256",
        "max_queued_messages 20000",
        "max_queued_bytes 134217728",
        "max_keepalive 3600",
        "set_tcp_nodelay true",
        "",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
        f"include_dir {folder / _OWN}",
    ]
    return "\n".join(lines) + "\n"


def access_list(tenant: str, denied: Iterable[str] = ()) -> str:
    """Who may read and write which topics. `denied` are gateways without a valid certificate: a session they still have falls silent."""
    own = [line for name in RESERVED for line in (f"user {name}", f"topic readwrite {ROOT}/{tenant}/#", "topic read $SYS/#", "")]
    lines = [
        *own,
        f"pattern read {ROOT}/{tenant}/g/%u/dn/#",
        f"pattern write {ROOT}/{tenant}/g/%u/up/#",
    ]
    for gateway in sorted(denied):
        lines += ["", f"user {gateway}", "topic deny #"]
    return "\n".join(lines) + "\n"


def write_configuration(settings: Settings) -> bool:
    """Writes mosquitto.conf and its folders. True when it changed: the broker must then be started again."""
    for folder in (settings.folder / _OWN, settings.folder / "mosquitto/data"):
        folder.mkdir(parents=True, exist_ok=True)
    return _write(settings.mosquitto_conf, configuration(settings))


def write_access_list(settings: Settings, denied: Iterable[str] = ()) -> bool:
    """Writes the access list. True when it changed: the broker must then read it again."""
    return _write(settings.broker_acl, access_list(settings.tenant, denied))


def reload(settings: Settings) -> str:
    """Makes a running broker read its access list and revocations again; returns `reloaded`, or why not and what to do."""
    pid = _pid(settings.broker_pid)
    if pid is None:
        return "no broker runs here; where it runs elsewhere, copy crl.pem and acl there and send it SIGHUP"
    try:
        os.kill(pid, signal.SIGHUP)
    except ProcessLookupError:
        return "the broker does not run; it reads the revocations when it starts"
    except PermissionError:
        return f"the broker (process {pid}) belongs to another user; send it SIGHUP: systemctl reload mosquitto"
    return "reloaded"


def _pid(path: Path) -> int | None:
    """The broker's process id, unless the file is old and the number belongs to another program by now."""
    try:
        pid = int(path.read_text()[:20])
        name = Path(f"/proc/{pid}/comm").read_text()
    except (OSError, ValueError):
        return None
    return pid if name.startswith("mosquitto") else None


def _write(path: Path, text: str) -> bool:
    if path.exists() and path.read_bytes() == text.encode():
        return False
    replace(path, text.encode(), mode=0o600)
    return True
