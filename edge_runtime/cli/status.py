"""`status` and `ledger`: what the gateway on this machine is doing, and whether its accounting balances."""

from __future__ import annotations

import argparse
import json
from typing import Any

from edge_runtime.access.local import ask
from edge_runtime.paths import add_state_option
from edge_runtime.store import read_ledger


class StatusCommand:
    """Asks the running gateway over its local socket."""

    summary = "show what the running gateway sees, decides and stores"
    example = "edge-runtime status --json"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_state_option(parser)
        parser.add_argument("--json", action="store_true", help="print the whole status as one JSON document")

    def run(self, args: argparse.Namespace) -> int:
        status = ask(args.state, "/status")
        print(json.dumps(status, indent=2) if args.json else "\n".join(_lines(status)))
        return 0


class LedgerCommand:
    """Reads the persisted ledger, whether a gateway runs or not."""

    summary = "show the accounting: offered = delivered + pending + dropped"
    example = "edge-runtime ledger --state /var/lib/edge-runtime --json"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_state_option(parser)
        parser.add_argument("--json", action="store_true", help="print one JSON document")

    def run(self, args: argparse.Namespace) -> int:
        ledger = read_ledger(args.state)
        if args.json:
            print(json.dumps(ledger.as_dict(), indent=2))
        else:
            dropped = ", ".join(f"{reason} {count}" for reason, count in ledger.dropped.items()) or "0"
            print(f"offered {ledger.offered} = delivered {ledger.delivered} + pending {ledger.pending} + dropped {dropped}")
            print("balanced" if ledger.balanced else "NOT BALANCED")
        return 0 if ledger.balanced else 1


def _deployment(status: dict[str, Any]) -> list[str]:
    """What runs, from which slot, and what became of the last offer."""
    deployment, slots = status["deployment"], status["slots"]
    probation, good = slots["probation"], slots.get("good")
    lines = [f"running   revision {deployment['running_revision']} from the {deployment['slot']} slot"]
    if probation:
        back = f"revision {good['revision']}" if good else "the factory's"
        lines[0] += f", on probation for {probation['ran_s']:.0f} of {probation['of_s']:g} s (else back to {back})"
    if deployment["phase"] != "factory":
        why = f": {deployment['reason']}: {deployment['message']}" if deployment["reason"] else ""
        lines.append(f"offered   revision {deployment['revision']} {deployment['phase'].upper()}{why}")
    return lines


def _lines(status: dict[str, Any]) -> list[str]:
    link, ledger = status["link"], status["ledger"]
    lines = [
        f"gateway   {status['tenant']}/{status['gateway']}, up {status['uptime_s']:.0f} s, boot {status['boot']}",
        *_deployment(status),
        f"link      {'up' if link['up'] else 'down'}  {link['detail']}",
        f"ledger    offered {ledger['offered']} = delivered {ledger['delivered']} + pending {ledger['pending']}"
        f" + dropped {sum(ledger['dropped'].values())}",
    ]
    for name, adapter in status["adapters"].items():
        lines.append(f"adapter   {name}: {'open' if adapter['connected'] else 'LOST'}  {adapter['detail']}")
    for name, channel in status["channels"].items():
        value = "unknown" if channel["value"] is None else f"{channel['value']:.6g} {channel['unit']}"
        lines.append(f"channel   {name}: {value}  ({channel['quality']}, {channel['age_s']:.1f} s old)")
    for name, seen in status["pipelines"].items():
        what = seen.get("label") or seen.get("values")
        lines.append(f"pipeline  {name}: {what}  {seen.get('latency_ms', 0):.2f} ms, {seen['count']} inferences")
    for canary in status["canaries"]:
        lines.append(f"canary    {canary['pipeline']}: {canary['summary']}")
    for name, reason in status["models"]["refused"].items():
        lines.append(f"model     {name}: REFUSED {reason}")
    for name, actuator in status["actuators"].items():
        lines.append(f"actuator  {name}: {actuator['state']}  because of {actuator['cause'] or '-'}")
    lines.append(f"rules     active: {', '.join(status['rules']['active']) or 'none'}")
    return lines
