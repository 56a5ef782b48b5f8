"""A PostgreSQL server of its own in a temporary folder, to be started, stopped and killed. For tests and benchmarks.

Runs the installed programs as an unprivileged user, on a Unix socket without a password and on a free loopback port with one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge_runtime.errors import DeadlineExceeded, EdgeRuntimeError, InputError

_START_S = 30.0
_FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/local/pgsql/bin", "/opt/homebrew/opt/postgresql*/bin", "/usr/pgsql-*/bin")
_EMPTY = """SET client_min_messages = warning;
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid();
DROP SCHEMA public CASCADE; CREATE SCHEMA public"""


def find_postgres() -> Path | None:
    """The folder with `postgres` and `initdb`, which Debian keeps out of PATH; the newest version when there are several."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    found = [path.parent for pattern in _FOLDERS for path in Path("/").glob(f"{pattern[1:]}/initdb")]
    return max(found, key=lambda folder: [int(part) for part in folder.parent.name.split(".") if part.isdigit()], default=None)


class PostgresServer:
    """One server. `durable` keeps its fsyncs, which benchmarks need and tests that kill only processes do not.

    Otherwise its default is not to wait for its log at a commit, so that a test sees who relies on that default.
    """

    def __init__(self, *, durable: bool = False, options: Sequence[str] = ()) -> None:
        """Makes the cluster and starts it. Raises InputError when PostgreSQL is not installed."""
        programs = find_postgres()
        if programs is None:
            raise InputError("PostgreSQL is not installed: apt install postgresql")
        self._programs = programs
        account = _account()
        self._user = account.pw_uid if account else None
        self._group = account.pw_gid if account else None
        self._options = [*options] if durable else ["fsync=off", "full_page_writes=off", "synchronous_commit=off", *options]
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self.password = "secret word"  # noqa: S105 # of a server that lives for one test
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self.port = _free_port()
        try:
            self._create()
            self.start()
        except BaseException:
            self.close()
            raise

    def database(self) -> str:
        """A new, empty database; its URL goes through the Unix socket."""
        name = f"db{next(self._numbers)}"
        self._run("createdb", "-h", str(self.folder), "-p", str(self.port), "-U", "tester", name)
        return self._url(name)

    def emptied(self) -> str:
        """The database `postgres` with nothing in it and nobody connected: faster than a new one."""
        self._run("psql", "-q", "-v", "ON_ERROR_STOP=1", "-c", _EMPTY, self._url("postgres"))
        return self._url("postgres")

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        settings = [f"unix_socket_directories={self.folder}", "listen_addresses=127.0.0.1", f"port={self.port}", *self._options]
        arguments = [argument for setting in settings for argument in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._programs / "postgres"), "-D", str(self.folder / "data"), *arguments],
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
                user=self._user,
                group=self._group,
            )
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise DeadlineExceeded(f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-500:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends every connection and the server (a fast shutdown)."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """The server is gone from one moment to the next, and recovers from its log at the next start."""
        self._end(signal.SIGQUIT)

    def close(self) -> None:
        """Stops it and removes the folder."""
        self._end(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _url(self, name: str) -> str:
        return f"postgresql://tester@/{name}?host={self.folder}&port={self.port}"

    def _create(self) -> None:
        if self._user is not None:
            shutil.chown(self.folder, self._user, self._group)
        words = self.folder / "password"
        words.write_text(self.password)
        words.chmod(0o644)
        self._run(
            "initdb", "-D", str(self.folder / "data"), "-U", "tester", "-E", "UTF8", "--locale=C", "--no-sync",
            "--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={words}",
        )  # fmt: skip

    def _answers(self) -> bool:
        command = [str(self._programs / "pg_isready"), "-q", "-h", str(self.folder), "-p", str(self.port)]
        return subprocess.run(command, check=False, timeout=_START_S).returncode == 0

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_START_S, cwd=self.folder, user=self._user, group=self._group
        )
        if done.returncode != 0:
            raise EdgeRuntimeError(f"{program} ended with {done.returncode}: {done.stderr.strip()[-500:]}")

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        process.wait(timeout=_START_S)


@contextlib.contextmanager
def postgres_server(*, durable: bool = False, options: Sequence[str] = ()) -> Iterator[PostgresServer]:
    """A server for as long as the block lasts."""
    server = PostgresServer(durable=durable, options=options)
    try:
        yield server
    finally:
        server.close()


def _account() -> pwd.struct_passwd | None:
    """Whom to become: PostgreSQL refuses to run as root. None: who we are."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise EdgeRuntimeError("PostgreSQL does not run as root, and there is no user postgres or nobody")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
