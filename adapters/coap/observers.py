"""Who observes what (RFC 7641), and when they are told: at most so often, always the newest, and only as long as they listen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from adapters.coap.endpoint import Address
from adapters.coap.message import Message

_CONFIRM_EVERY = 16
_CONFIRM_AFTER_S = 300.0


@dataclass(eq=False, slots=True)
class Observer:
    """One observation: the request that began it is answered anew for every notification."""

    address: Address
    path: str
    request: Message
    told: int = 0
    confirmed_s: float = 0.0
    waiting: bool = False  # a confirmable notification is not acknowledged yet
    behind: bool = False  # there is news since

    @property
    def key(self) -> tuple[Address, bytes]:
        return self.address, self.request.token


@dataclass(slots=True)
class _Pace:
    last_s: float = 0.0
    timer: asyncio.TimerHandle | None = None
    observers: dict[tuple[Address, bytes], Observer] = field(default_factory=dict)


class Observers:
    """At most `most` of them; `tell(observer, done)` sends a notification, confirmable when `done` is given. Event loop only."""

    def __init__(self, most: int, interval_s: float, tell: Callable[[Observer, Callable[[bool], None] | None], None]) -> None:
        self.refused = self.notified = 0
        self._most = most
        self._interval_s = interval_s
        self._tell = tell
        self._paces: dict[str, _Pace] = {}

    def __len__(self) -> int:
        return sum(len(pace.observers) for pace in self._paces.values())

    def __iter__(self) -> Iterator[Observer]:
        return (observer for pace in self._paces.values() for observer in pace.observers.values())

    def add(self, observer: Observer) -> bool:
        """False when there is no room. The same address and token again takes the old place."""
        self.remove(*observer.key)
        if len(self) >= self._most:
            self.refused += 1
            return False
        observer.confirmed_s = _now_s()
        pace = self._paces.setdefault(observer.path, _Pace())
        pace.observers[observer.key] = observer
        return True

    def remove(self, address: Address, token: bytes) -> None:
        for path, pace in list(self._paces.items()):
            pace.observers.pop((address, token), None)
            if not pace.observers:
                _stop(pace)
                del self._paces[path]

    def changed(self, path: str) -> None:
        """There is news of this resource: its observers hear of it in a turn of the loop's own, or when the interval has passed."""
        pace = self._paces.get(path)
        if pace is None or pace.timer is not None:
            return
        wait_s = max(0.0, pace.last_s + self._interval_s - _now_s())
        pace.timer = asyncio.get_running_loop().call_later(wait_s, self._notify, pace)

    def close(self) -> None:
        """Forgets them all."""
        for pace in self._paces.values():
            _stop(pace)
        self._paces.clear()

    def _notify(self, pace: _Pace) -> None:
        pace.timer, pace.last_s = None, _now_s()
        for observer in list(pace.observers.values()):
            self._notify_one(observer, pace.last_s)

    def _notify_one(self, observer: Observer, now_s: float) -> None:
        if observer.waiting:
            observer.behind = True
            return
        observer.told += 1
        self.notified += 1
        if observer.told % _CONFIRM_EVERY == 0 or now_s - observer.confirmed_s > _CONFIRM_AFTER_S:
            observer.waiting, observer.behind = True, False
            self._tell(observer, lambda heard: self._confirmed(observer, heard))
        else:
            self._tell(observer, None)

    def _confirmed(self, observer: Observer, heard: bool) -> None:
        observer.waiting, observer.confirmed_s = False, _now_s()
        if not heard:
            self.remove(*observer.key)
        elif observer.behind and observer.key in self._paces.get(observer.path, _Pace()).observers:
            observer.behind = False
            self.changed(observer.path)


def _stop(pace: _Pace) -> None:
    if pace.timer is not None:
        pace.timer.cancel()
        pace.timer = None


def _now_s() -> float:
    return asyncio.get_running_loop().time()
