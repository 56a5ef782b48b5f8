"""The status document: everything a person or program may want to know of a running gateway, as plain values."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge_runtime import __version__
from edge_runtime.access.local import Route
from edge_runtime.errors import InputError
from edge_runtime.ports import Document
from edge_runtime.types import Action, Decision, Inference, Quality, Reading

if TYPE_CHECKING:
    from edge_runtime.app import Gateway

_RECENT = 32


class StatusReport:
    """Watches the bus of one gateway and answers the local API."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._begun_ns = gateway.clock.monotonic_ns()
        self._inferences: dict[str, tuple[Inference, int]] = {}
        self._decisions: deque[Decision] = deque(maxlen=_RECENT)
        self._decided = 0
        self._actions: dict[str, Action] = {}
        bus = gateway.loop.bus
        bus.subscribe(Inference, self._on_inference)
        bus.subscribe(Decision, self._on_decision)
        bus.subscribe(Action, self._on_action)

    def routes(self) -> Mapping[tuple[str, str], Route]:
        """What the local API serves."""
        return {**{("GET", path): _route(document) for path, document in self.documents().items()}, ("POST", "/flag"): self._set_flag}

    def documents(self) -> Mapping[str, Document]:
        """What can be read, by path; see `edge_runtime.ports.GatewayView`."""
        return {
            "/status": lambda query: self.status(),
            "/ledger": lambda query: self._gateway.store.ledger().as_dict(),
            "/explain": self._explanation,
            "/readings": lambda query: _one_or_all(self._channels(), query, "sensor that has spoken is called"),
            "/decisions": lambda query: {"count": self._decided, "last": self._decisions[-1] if self._decisions else None},
            "/actuators": lambda query: _one_or_all(self._actuators(), query, "actuator is called"),
        }

    def watch(self, changed: Callable[[str], None]) -> Callable[[], None]:
        """See `edge_runtime.ports.GatewayView`."""
        bus = self._gateway.loop.bus
        ends = (
            bus.subscribe(Reading, lambda reading: changed(f"/readings/{reading.channel}")),
            bus.subscribe(Decision, lambda decision: changed("/decisions")),
            bus.subscribe(Action, lambda action: changed(f"/actuators/{action.actuator}")),
        )

        def end() -> None:
            for unsubscribe in ends:
                unsubscribe()

        return end

    def report(self) -> Mapping[str, Any]:
        """What goes to the controller as reported state."""
        return {"ledger": self._gateway.store.ledger().as_dict(), "status": self._summary()}

    def line(self) -> str:
        """One line for `systemctl status`."""
        ledger = self._gateway.store.ledger()
        link = "up" if self._gateway.uplink and self._gateway.uplink.up else "down"
        active = ", ".join(self._gateway.loop.engine.active) or "no rule active"
        return f"link {link}; pending {ledger.pending}; {active}"

    def status(self) -> dict[str, Any]:
        """The whole document, as `status --json` prints it."""
        gateway = self._gateway
        now_ns = gateway.clock.monotonic_ns()
        return {
            **self._summary(),
            "slots": self._slots(),
            "boot": gateway.store.boot,
            "ready": gateway.ready,
            "uptime_s": (now_ns - self._begun_ns) / 1e9,
            "clock": {"wall_err_ns": gateway.clock.now().wall_err_ns},
            "link": self._link(),
            "ledger": {**gateway.store.ledger().as_dict(), "kept_local": gateway.loop.recorder.kept_local},
            "ingest": {"samples": gateway.loop.ingest.counters.samples, "unbound": gateway.loop.ingest.counters.unbound},
            "adapters": self._adapters(),
            "channels": self._channels(),
            "pipelines": {name: _inference(inference, count) for name, (inference, count) in self._inferences.items()},
            "actuators": self._actuators(),
            "flags": dict(gateway.loop.flags),
        }

    def _summary(self) -> dict[str, Any]:
        gateway = self._gateway
        return {
            "gateway": gateway.config.gateway.id,
            "tenant": gateway.config.gateway.tenant,
            "version": __version__,
            "deployment": msgspec.to_builtins(gateway.reported()),
            "models": {
                "served": {name: handle.digest for name, handle in gateway.served.handles.items()},
                "refused": dict(gateway.served.refused),
            },
            "canaries": [{**msgspec.to_builtins(figures), "summary": str(figures)} for figures in gateway.loop.flow.canaries()],
            "rules": {"active": sorted(gateway.loop.engine.active), "decisions": [d.id for d in self._decisions]},
        }

    def _slots(self) -> dict[str, Any]:
        """What every slot holds, and how far a probation has come."""
        state, factory = self._gateway.updates.state, self._gateway.config.deployment
        held = {
            name: {"revision": kept.revision, "digest": kept.digest}
            for name, kept in (("good", state.good), ("candidate", state.candidate))
            if kept is not None
        }
        return {"factory": factory, **held, "probation": self._gateway.updates.probation()}

    def _link(self) -> dict[str, Any]:
        if self._gateway.uplink is None:
            return {"up": False, "detail": "no broker in the gateway file: running offline", "counters": {}}
        health = self._gateway.uplink.health()
        return {"up": self._gateway.uplink.up, "detail": health.detail, "counters": health.counters}

    def _adapters(self) -> dict[str, Any]:
        return {
            name: {
                "connected": supervisor.connected,
                "detail": supervisor.detail,
                "counters": dict(supervisor.adapter.health().counters),
            }
            for name, supervisor in self._gateway.supervisors.items()
        }

    def _channels(self) -> dict[str, Any]:
        now_ns = self._gateway.clock.monotonic_ns()
        return {name: _channel(reading, now_ns) for name, reading in self._gateway.loop.ingest.latest.items()}

    def _actuators(self) -> dict[str, Any]:
        document = {}
        for name, state in self._gateway.loop.actuation.states().items():
            action = self._actions.get(name)
            document[name] = {
                "state": state,
                "cause": action.cause if action else "",
                "decision": action.decision if action else "",
                "outcome": action.outcome.value if action else "",
            }
        return document

    def _on_inference(self, inference: Inference) -> None:
        _, count = self._inferences.get(inference.pipeline, (inference, 0))
        self._inferences[inference.pipeline] = (inference, count + 1)

    def _on_decision(self, decision: Decision) -> None:
        self._decisions.append(decision)
        self._decided += 1

    def _on_action(self, action: Action) -> None:
        self._actions[action.actuator] = action

    def _explanation(self, query: Mapping[str, str]) -> Any:
        rules = {rule.rule: rule for rule in self._gateway.deployment.rules}
        name = query.get("rule", "")
        if name not in rules:
            raise InputError(f"no rule `{name}` in the deployment (known: {', '.join(rules) or 'none'})")
        premises = self._gateway.loop.engine.explain(name)
        return {
            "rule": name,
            "when": rules[name].when,
            "until": rules[name].until,
            "active": name in self._gateway.loop.engine.active,
            "premises": [{"text": p.text, "truth": p.truth, "value": p.value, "seq": p.seq} for p in premises],
        }

    async def _set_flag(self, query: Mapping[str, str]) -> Any:
        name, value = query.get("name", ""), query.get("value", "")
        if value not in ("true", "false"):
            raise InputError(f"value: expected `true` or `false`, got `{value}`")
        self._gateway.loop.set_flag(name, value == "true")
        return {"flags": dict(self._gateway.loop.flags)}


def _route(document: Document) -> Route:
    async def route(query: Mapping[str, str]) -> Any:
        return document(query)

    return route


def _one_or_all(documents: Mapping[str, Any], query: Mapping[str, str], what: str) -> Any:
    name = query.get("name")
    if name is None:
        return documents
    if name not in documents:
        raise InputError(f"no {what} `{name[:64]}` (known: {', '.join(documents) or 'none'})")
    return documents[name]


def _channel(reading: Reading, now_ns: int) -> dict[str, Any]:
    value = reading.value
    if reading.block is not None and len(reading.block):
        value = float(np.sqrt(np.mean(np.square(reading.block, dtype=np.float64))))
    return {
        "value": value,
        "unit": reading.unit,
        "kind": "rms" if reading.block is not None else "value",
        "quality": Quality(reading.quality).name.lower(),
        "seq": reading.seq,
        "age_s": (now_ns - reading.at.mono_ns) / 1e9,
    }


def _inference(inference: Inference, count: int) -> dict[str, Any]:
    return {
        "label": inference.label,
        "score": inference.score,
        "values": list(inference.values[:16]),
        "quality": Quality(inference.quality).name.lower(),
        "model": inference.model,
        "digest": inference.digest,
        "latency_ms": inference.latency_ns / 1e6,
        "count": count,
    }
