"""`for`: a condition that must have been seen true for a time. Pure; time comes with each update.

operand   effect                                                     truth of the timer
true      the time runs                                              true once it is complete; before, false if the
                                                                     operand was false since the last gap, else unknown
false     the time is reset                                          false
unknown   the time stands still; a gap longer than the whole time    unknown
          resets it, for what was seen before proves nothing then
"""

from __future__ import annotations

from collections.abc import Callable


class Timer:
    """One `for`. `deadline_ns` is the monotonic time at which it completes if its operand stays true, else None.

    `known_start` says that the time counts from an event, such as a rule's firing, so that an incomplete time is never in doubt.
    `scheduled_ns` belongs to whoever keeps the deadlines of many.
    """

    __slots__ = (
        "_in_doubt",
        "_operand",
        "_paused_ns",
        "_seen_ns",
        "_since_ns",
        "deadline_ns",
        "duration_ns",
        "known_start",
        "scheduled_ns",
        "truth",
    )

    def __init__(self, operand: Callable[[], bool | None], duration_ns: int) -> None:
        self.duration_ns = duration_ns
        self.truth: bool | None = None
        self.deadline_ns: int | None = None
        self.scheduled_ns: int | None = None
        self.known_start = False
        self._operand = operand
        self._in_doubt = True
        self._since_ns: int | None = None
        self._seen_ns = 0
        self._paused_ns = 0

    def update(self, now_ns: int) -> None:
        """Takes the operand's truth as it is at `now_ns`."""
        operand = self._operand()
        if operand:
            self._run(now_ns)
        elif operand is None:
            self._pause(now_ns)
        else:
            self.reset()
            self.truth = False
            self._in_doubt = False

    def elapsed_ns(self, now_ns: int) -> int:
        """How long the operand has been seen true so far, at most the whole time."""
        seen = self._seen_ns if self._since_ns is None else now_ns - self._since_ns
        return min(seen, self.duration_ns)

    def reset(self) -> None:
        """Starts from nothing."""
        self._since_ns = self.deadline_ns = self.truth = None
        self._seen_ns = 0

    def resume(self, elapsed_ns: int, paused_ns: int) -> None:
        """Takes up a time that was kept over a restart: unknown since `paused_ns`."""
        self.reset()
        self._in_doubt = True
        self._seen_ns = min(elapsed_ns, self.duration_ns)
        self._paused_ns = paused_ns

    def _run(self, now_ns: int) -> None:
        if self._since_ns is None:
            if self._seen_ns and now_ns - self._paused_ns > self.duration_ns:
                self._seen_ns = 0
            self._since_ns = now_ns - self._seen_ns
        if now_ns - self._since_ns >= self.duration_ns:
            self.truth, self.deadline_ns = True, None
        else:
            self.truth = None if self._in_doubt and not self.known_start else False
            self.deadline_ns = self._since_ns + self.duration_ns

    def _pause(self, now_ns: int) -> None:
        if self._since_ns is not None:
            self._seen_ns = self.elapsed_ns(now_ns)
            self._paused_ns = now_ns
            self._since_ns = self.deadline_ns = None
        self._in_doubt = True
        self.truth = None
