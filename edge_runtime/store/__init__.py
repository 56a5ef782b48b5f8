"""The durable store: outbox, ledger, slots and journal in one SQLite file with one writer thread. See docs/adr/0001-durable-store.md."""

from edge_runtime.store.inspect import read_boots, read_drops, read_journal, read_ledger
from edge_runtime.store.journal import JournalEntry
from edge_runtime.store.outbox import Batch, Outbox
from edge_runtime.store.store import Store

__all__ = ["Batch", "JournalEntry", "Outbox", "Store", "read_boots", "read_drops", "read_journal", "read_ledger"]
