"""The demo's live view: the story on the left, the plant and the accounting on the right. Drawn with rich, on stderr."""

from __future__ import annotations

from collections import deque
from typing import Any

from rich.align import Align
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from edge_runtime.demo.story import Event, Status

_BARS = "▁▂▃▄▅▆▇█"
_TROUBLE = {"fault_injected", "link_cut", "killed", "unbalanced"}
_HISTORY = 48


class LiveView:
    """Shows every status and event it is given; use as a context manager."""

    def __init__(self, duration_s: float) -> None:
        self._duration_s = duration_s
        self._events: list[Event] = []
        self._status: Status = {}
        self._vibration: deque[float] = deque(maxlen=_HISTORY)
        self._flow: deque[float] = deque(maxlen=_HISTORY)
        self._last_ledger: dict[str, Any] = {}
        self._live = Live(console=Console(stderr=True), refresh_per_second=8, get_renderable=self._draw)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def observe(self, seen: Event | Status) -> None:
        """Takes one status or event."""
        if isinstance(seen, Event):
            self._events.append(seen)
            self._last_ledger = seen.facts.get("ledger", self._last_ledger)
            return
        self._status = seen
        channels = seen.get("channels", {})
        for name, history in (("vibration", self._vibration), ("flow", self._flow)):
            value = channels.get(name, {}).get("value")
            history.append(float("nan") if value is None else value)
        self._last_ledger = seen.get("ledger", self._last_ledger)

    def _draw(self) -> RenderableType:
        right = Group(self._plant(), self._accounting())
        table = Table.grid(expand=True)
        table.add_column(ratio=3)
        table.add_column(ratio=2)
        table.add_row(self._story(), right)
        return table

    def _story(self) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        table.add_column(justify="right", style="dim", no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column()
        for event in self._events:
            mark, style = ("✖", "bold red") if event.event in _TROUBLE else ("✔", "bold green")
            table.add_row(f"{event.t_s:4.0f} s", Text(mark, style), event.sentence)
        elapsed_s = self._events[-1].t_s if self._events else 0.0
        bar = ProgressBar(total=self._duration_s, completed=min(elapsed_s, self._duration_s), width=40)
        return Panel(
            Group(table, Text(), Align.center(bar)),
            title="[b]edge-runtime: one pump, one gateway, no cloud needed[/b]",
            border_style="cyan",
        )

    def _plant(self) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        table.add_column(style="dim", no_wrap=True)
        table.add_column()
        seen = self._status.get("pipelines", {}).get("bearing", {})
        label, score = seen.get("label"), seen.get("score")
        verdict = (
            Text("unknown", "dim")
            if label is None
            else Text(f"{label.replace('_', ' ')}  {score:.0%}", "green" if label == "normal" else "bold red")
        )
        actuator = self._status.get("actuators", {}).get("valve", {})
        state = actuator.get("state") or "unknown"
        table.add_row("vibration", sparkline(self._vibration) + f"  {_last(self._vibration)} m/s2 rms")
        table.add_row("model says", verdict)
        table.add_row("valve", Text(state.upper(), "bold green" if state == "open" else "bold yellow"))
        table.add_row("because of", str(actuator.get("cause") or "-"))
        table.add_row("flow", sparkline(self._flow) + f"  {_last(self._flow)} l/min")
        if (motor := self._status.get("channels", {}).get("motor_temperature", {}).get("value")) is not None:
            fan = str(self._status.get("actuators", {}).get("fan", {}).get("state") or "unknown")
            table.add_row(
                "sensor node", Text.assemble(f"motor {motor:.1f} degC, fan ", (fan.upper(), "bold green" if fan == "running" else "bold"))
            )
        table.add_row("inference", f"{seen.get('latency_ms', 0):.2f} ms, INT8, on the gateway" if seen else "-")
        return Panel(table, title="[b]Plant and gateway[/b]", border_style="cyan")

    def _accounting(self) -> RenderableType:
        ledger = self._last_ledger
        offered = ledger.get("offered", 0)
        table = Table.grid(padding=(0, 1))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(justify="right")
        table.add_column()
        for name in ("offered", "delivered", "pending"):
            count = ledger.get(name, 0)
            style = "yellow" if name == "pending" else "green"
            table.add_row(
                name, str(count), ProgressBar(total=max(1, offered), completed=count, width=22, complete_style=style, finished_style=style)
            )
        table.add_row("dropped", str(sum(ledger.get("dropped", {}).values())), "")
        alive, up = bool(self._status), bool(self._status.get("link", {}).get("up"))
        lamps = Text.assemble(
            _lamp("gateway", alive), "   ", _lamp("network", up), "   ", _lamp("local loop", alive and bool(self._status.get("ready")))
        )
        return Panel(Group(table, Text(), lamps), title="[b]Nothing is lost[/b]", border_style="cyan")


def sparkline(values: deque[float]) -> str:
    """Values as a row of bars, from 0 to the largest seen; unknown ones are gaps."""
    known = [value for value in values if value == value]
    top = max(known, default=1.0) or 1.0
    return "".join(" " if value != value else _BARS[min(7, int(8 * max(0.0, value) / top))] for value in list(values)[-18:])


def _last(values: deque[float]) -> str:
    return f"{values[-1]:.1f}" if values and values[-1] == values[-1] else "-"


def _lamp(name: str, on: bool) -> Text:
    return Text(f"● {name}", "green" if on else "bold red")
