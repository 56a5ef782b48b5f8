"""Finds adapters, model backends, transports and commands by entry point. It caches nothing and never falls back to another."""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from edge_runtime.errors import InputError

ADAPTERS = "edge_runtime.adapters"
MODEL_BACKENDS = "edge_runtime.model_backends"
MODEL_STORES = "edge_runtime.model_stores"
SYNC_TRANSPORTS = "edge_runtime.sync_transports"
SERVERS = "edge_runtime.servers"
EXAMINATIONS = "edge_runtime.examinations"
COMMANDS = "edge_runtime.commands"


def names(group: str) -> list[str]:
    """Every registered name of a group, sorted."""
    return sorted({point.name for point in entry_points(group=group)})


def load(group: str, name: str) -> Any:
    """The object behind a name. Raises InputError naming the choices, MissingDependency when its library is absent."""
    return find(group, name).load()


def find(group: str, name: str) -> EntryPoint:
    """The entry point of a name, not yet imported. Raises InputError naming the choices."""
    for point in entry_points(group=group, name=name):
        return point
    known = names(group)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    raise InputError(f"`{name}` is not a known {group.partition('.')[2].rstrip('s').replace('_', ' ')}{hint} (known: {', '.join(known)})")
