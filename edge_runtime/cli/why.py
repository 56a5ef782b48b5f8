"""`why` and `why-not`: the proof behind a decision or an action, with readings, thresholds, model and rule versions."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

from edge_runtime.access.local import ask
from edge_runtime.errors import InputError
from edge_runtime.paths import add_state_option
from edge_runtime.records import RecordKind
from edge_runtime.store import JournalEntry, read_journal

_DEPTH = 1000
_MARKS = {True: "true", False: "false", None: "unknown"}


class Command:
    """Reads the journal, whether a gateway runs or not."""

    summary = "explain a decision, or what an actuator did last, down to the readings"
    example = "edge-runtime why --actuator valve"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("decision", nargs="?", help="a decision or action id (see `status`); default: the newest decision")
        parser.add_argument("--actuator", metavar="NAME", help="explain this actuator's newest action")
        add_state_option(parser)
        parser.add_argument("--json", action="store_true", help="print one JSON document")

    def run(self, args: argparse.Namespace) -> int:
        action, decision = _find(args)
        document = {"action": action, "decision": decision}
        print(json.dumps(document, indent=2) if args.json else "\n".join(_tell(action, decision)))
        return 0


class WhyNotCommand:
    """Asks the running gateway how each premise of a rule stands now."""

    summary = "explain why a rule is not active, premise by premise"
    example = "edge-runtime why-not bearing_fault"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("rule", help="a rule of the deployment")
        add_state_option(parser)
        parser.add_argument("--json", action="store_true", help="print one JSON document")

    def run(self, args: argparse.Namespace) -> int:
        answer = ask(args.state, f"/explain?rule={quote(args.rule)}")
        if args.json:
            print(json.dumps(answer, indent=2))
            return 0
        print(f"rule {answer['rule']} is {'active' if answer['active'] else 'not active'}: when {answer['when']}")
        print("\n".join(_premises(answer["premises"])))
        return 0


def _find(args: argparse.Namespace) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The action asked for, if any, and the decision behind it. Raises InputError when there is none."""
    if args.actuator:
        action = next((a for a in _bodies(read_journal(args.state, RecordKind.ACTION, _DEPTH)) if a["actuator"] == args.actuator), None)
        if action is None:
            raise InputError(f"no action of an actuator `{args.actuator}` is in the journal of {args.state}")
        return action, _by_id(args, action["decision"])
    if args.decision:
        found = _by_id(args, args.decision)
        if found is None:
            raise InputError(f"no decision or action `{args.decision}` is in the journal of {args.state} (it keeps the newest)")
        return (found, _by_id(args, found["decision"])) if "actuator" in found else (None, found)
    newest = next(_bodies(read_journal(args.state, RecordKind.DECISION, 1)), None)
    if newest is None:
        raise InputError(f"no decision is in the journal of {args.state} yet")
    return None, newest


def _by_id(args: argparse.Namespace, wanted: str) -> dict[str, Any] | None:
    return next(_bodies(read_journal(args.state, id=wanted)), None) if wanted else None


def _bodies(entries: Iterable[JournalEntry]) -> Iterator[Any]:
    return iter([entry.body for entry in entries])


def _tell(action: dict[str, Any] | None, decision: dict[str, Any] | None) -> list[str]:
    lines = []
    if action is not None:
        lines.append(f"{_when(action['at'])}  {action['actuator']} -> {action['state']}: {action['outcome']}  ({action['cause']})")
    if decision is None:
        return [*lines, "  no rule decided this: the cause above is the whole reason"]
    lines.append(
        f"{_when(decision['at'])}  rule {decision['rule']} {decision['kind']}  ({decision['id']}, revision {decision['revision']})"
    )
    if decision.get("reason"):
        lines.append(f"  because {decision['reason']}")
    if decision.get("text"):
        lines.append(f"  when {decision['text']}")
    return lines + _premises(decision["premises"])


def _premises(premises: Iterable[dict[str, Any]]) -> list[str]:
    return [f"    {_MARKS[p['truth']]:8s} {p['text']}" + _evidence(p) for p in premises]


def _evidence(premise: dict[str, Any]) -> str:
    if premise.get("value") is None:
        return "   (no value)"
    model = f", model {premise['digest'][:19]}" if premise.get("digest") else ""
    return f"   ({premise['value']}, reading {premise.get('seq', 0)}{model})"


def _when(at: dict[str, int]) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at["wall_ns"] / 1e9))
