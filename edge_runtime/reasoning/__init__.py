"""Rules: pure decisions over facts. `language` reads conditions, `facts` names what they speak of, `engine` runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from edge_runtime.types import Decision, Premise, Timestamp


class RuleEngine(Protocol):
    """What the runtime needs of a rule engine. Pure: facts and time come in, decisions come out."""

    def set(self, fact: str, value: float | bool | str | None, *, at_ns: int, seq: int = 0, digest: str = "", stale: bool = False) -> bool:
        """Takes a fact's new value (None: unknown); True when a step is due."""
        ...

    def step(self, now: Timestamp) -> list[Decision]:
        """What fired and was released since the last step."""
        ...

    def next_deadline_ns(self) -> int | None:
        """Monotonic time at which `step` is due even if no fact changes."""
        ...

    @property
    def active(self) -> dict[str, Decision]:
        """The rules that hold now, each with the decision that fired it."""
        ...

    def sustained(self) -> tuple[str, ...]:
        """The active rules that are known to hold now: these may renew their leases."""
        ...

    def explain(self, rule: str) -> tuple[Premise, ...]:
        """How the condition that decides on the rule's next change stands. Raises InputError for an unknown rule."""
        ...

    def watch(self, text: str) -> Callable[[], bool | None]:
        """The present truth of a condition over the same facts. Raises RuleError."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """What must survive a restart, as plain values."""
        ...

    def restore(self, document: Mapping[str, Any]) -> None:
        """Takes up a snapshot before the first step. Raises InputError when it cannot be read."""
        ...
