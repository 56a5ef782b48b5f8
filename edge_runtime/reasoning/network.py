"""Facts and the atoms over them: a value that arrives flips only the atoms whose truth it changes. No rules, no time.

Comparisons of one number with a constant lie in sorted bounds, so that a reading costs two binary searches however many
thresholds stand on it; only atoms between the old value and the new are looked at.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable

from edge_runtime.reasoning.facts import FactType, Value
from edge_runtime.reasoning.syntax import Node

Truth = Callable[[], bool | None]


class Watcher:
    """Whoever wants to know that one of its atoms has flipped: it is put on the network's `touched` list, once."""

    __slots__ = ("touched",)

    def __init__(self) -> None:
        self.touched = False


class Atom:
    """One shared leaf of conditions: `truth` is kept up to date by the slots of its facts."""

    __slots__ = ("_touched", "evaluate", "facts", "read", "truth", "watchers")

    def __init__(self, evaluate: Truth, facts: tuple[Slot, ...], read: Callable[[], Value], touched: list[Watcher]) -> None:
        self.evaluate = evaluate
        self.facts = facts
        self.read = read
        self.truth = evaluate()
        self.watchers: tuple[Watcher, ...] = ()
        self._touched = touched

    def refresh(self) -> None:
        truth = self.evaluate()
        if truth is not self.truth:
            self.flip(truth)

    def flip(self, truth: bool | None) -> None:
        self.truth = truth
        for watcher in self.watchers:
            if not watcher.touched:
                watcher.touched = True
                self._touched.append(watcher)


class _Bounds:
    """Atoms that flip where the value passes a constant: above it (`inclusive` False: value > c, else value >= c)."""

    __slots__ = ("_search", "atoms", "constants", "position")

    def __init__(self, inclusive: bool) -> None:
        self._search: Callable[[list[float], float], int] = bisect_right if inclusive else bisect_left
        self.constants: list[float] = []
        self.atoms: list[list[tuple[Atom, bool]]] = []
        self.position = 0

    def add(self, constant: float, atom: Atom, above: bool) -> None:
        index = bisect_left(self.constants, constant)
        if index == len(self.constants) or self.constants[index] != constant:
            self.constants.insert(index, constant)
            self.atoms.insert(index, [])
        self.atoms[index].append((atom, above))

    def place(self, value: float) -> None:
        self.position = self._search(self.constants, value)

    def move(self, value: float) -> None:
        old, new = self.position, self._search(self.constants, value)
        if new > old:
            self.position = new
            for index in range(old, new):
                for atom, above in self.atoms[index]:
                    atom.flip(above)
        elif new < old:
            self.position = new
            for index in range(new, old):
                for atom, above in self.atoms[index]:
                    atom.flip(not above)


class Slot:
    """The latest value of one fact, and the atoms that depend on it."""

    __slots__ = ("_all", "_equal", "_over", "_reach", "_rest", "at_ns", "digest", "kind", "name", "seq", "stale", "value")

    def __init__(self, name: str, kind: FactType) -> None:
        self.name = name
        self.kind = kind
        self.value: Value = None
        self.stale = False
        self.at_ns = 0
        self.seq = 0
        self.digest = ""
        self._all: list[Atom] = []
        self._over = _Bounds(inclusive=False)
        self._reach = _Bounds(inclusive=True)
        self._equal: dict[Value, list[tuple[Atom, bool]]] = {}
        self._rest: list[Atom] = []

    def admit(self, value: Value) -> Value:
        """The value in this fact's type; None when it is of another type or not finite."""
        kind = self.kind.kind
        if kind == "number":
            if isinstance(value, (int, float)):
                number = float(value)
                return number if number - number == 0.0 else None
            return None
        return value if isinstance(value, bool if kind == "flag" else str) else None

    def change(self, value: Value, stale: bool) -> None:
        """Takes an admitted value and flips what follows from it."""
        old, self.value = self.value, value
        if old is None or value is None or stale is not self.stale:
            self.stale = stale
            self._refresh_all()
            return
        if self._over.constants:
            self._over.move(value)  # type: ignore[arg-type] # bounds exist on numbers only
        if self._reach.constants:
            self._reach.move(value)  # type: ignore[arg-type]
        if self._equal:
            for atom, same in self._equal.get(old, ()):
                atom.flip(not same)
            for atom, same in self._equal.get(value, ()):
                atom.flip(same)
        for atom in self._rest:
            atom.refresh()

    def depend(self, atom: Atom, operator: str = "", constant: Value = None) -> None:
        """Adds an atom: `value operator constant` where an operator is given, else one to be evaluated at every change."""
        self._all.append(atom)
        if operator in (">", "<=") and isinstance(constant, float):
            self._over.add(constant, atom, operator == ">")
        elif operator in (">=", "<") and isinstance(constant, float):
            self._reach.add(constant, atom, operator == ">=")
        elif operator in ("==", "!="):
            self._equal.setdefault(constant, []).append((atom, operator == "=="))
        else:
            self._rest.append(atom)
        self._place()

    def _refresh_all(self) -> None:
        self._place()
        for atom in self._all:
            atom.refresh()

    def _place(self) -> None:
        if isinstance(self.value, float):
            self._over.place(self.value)
            self._reach.place(self.value)


class Network:
    """All slots and atoms of one engine."""

    def __init__(self, types: dict[str, FactType]) -> None:
        self.types = types
        self.slots: dict[str, Slot] = {}
        self.touched: list[Watcher] = []
        self._atoms: dict[Node, Atom] = {}

    def slot(self, name: str) -> Slot:
        """The slot of a fact, made at first use. KeyError for an unknown one."""
        slot = self.slots.get(name)
        if slot is None:
            slot = self.slots[name] = Slot(name, self.types[name])
        return slot

    def known_atom(self, node: Node) -> Atom | None:
        """An atom that another condition has made of an equal leaf."""
        return self._atoms.get(node)

    def add_atom(
        self, node: Node, evaluate: Truth, read: Callable[[], Value], facts: tuple[Slot, ...], operator: str = "", constant: Value = None
    ) -> Atom:
        """A new atom over `facts`; `operator` and `constant` when it compares its only fact with a constant."""
        atom = self._atoms[node] = Atom(evaluate, facts, read, self.touched)
        for slot in facts:
            slot.depend(atom, operator, constant)
        return atom
