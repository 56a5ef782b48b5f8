"""How far long work is: a bar where rich is installed and a person looks, else a line now and then. On stderr only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Step = Callable[[int, int, str], None]
"""`(done, total, note)`"""


@contextmanager
def progress(title: str) -> Iterator[Step]:
    """A step to call while working."""
    if sys.stderr.isatty():
        try:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        except ImportError:
            pass
        else:
            from rich.console import Console

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} {task.fields[note]}"))
            with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
                task = bar.add_task(title, total=None, note="")
                yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)
            return
    yield lambda done, total, note: _line(title, done, total, note)


def _line(title: str, done: int, total: int, note: str) -> None:
    if done == total or done % max(1, total // 5) == 0:
        sys.stderr.write(f"{title} {done}/{total} {note}\n")
