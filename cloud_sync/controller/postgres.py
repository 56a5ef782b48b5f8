"""Connections to PostgreSQL. The only module that imports asyncpg."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloud_sync.controller.address import Address
from edge_runtime.errors import InputError, MissingDependency, StoreError

if TYPE_CHECKING:
    from asyncpg import Connection

_CONNECT_S = 10.0


async def connect(address: Address, command_timeout_s: float | None = None) -> Connection:
    """One connection. Raises StoreError when the server cannot be reached or refuses; the password is not in the message."""
    try:
        import asyncpg
    except ImportError as err:
        raise MissingDependency("asyncpg", "postgres") from err
    settings = {"application_name": "edge-runtime controller"}
    try:
        return await asyncpg.connect(address.dsn, timeout=_CONNECT_S, command_timeout=command_timeout_s, server_settings=settings)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as err:
        raise StoreError(f"{address.shown}: cannot connect: {err or type(err).__name__}") from err
    except ValueError as err:
        raise InputError(f"{address.shown}: {type(err).__name__}: expected postgresql://USER@HOST:PORT/NAME") from err
