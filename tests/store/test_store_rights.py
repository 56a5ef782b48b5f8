"""Directories that cannot be written: a clean error that says what to do, and a ledger that can still be read."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.clock import SystemClock
from edge_runtime.errors import StoreError
from edge_runtime.records import RecordKind
from edge_runtime.store import Store, read_ledger
from edge_runtime.types import Priority, Timestamp

NOBODY = 65_534


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.decode().strip()}")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


async def test_a_read_only_disk_is_refused_for_writing_and_read_for_the_ledger(open_store: Any, disk: Path) -> None:
    store = open_store(disk / "store")
    store.offer(RecordKind.READING, Timestamp(1, 2, 3), {"n": 1}, Priority.BULK)
    await store.close()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(StoreError, match=r"not writable by user .* give this user write access"):
        open_store(disk / "store")
    assert read_ledger(disk / "store") == store.ledger()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_directory_of_another_user_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        directory.chmod(0o755)
        os.seteuid(NOBODY)
        try:
            with pytest.raises(StoreError, match="not writable by user 65534"):
                Store.open(directory, clock=SystemClock())
        finally:
            os.seteuid(0)
