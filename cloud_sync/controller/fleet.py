"""`edge-runtime fleet`: the operator's side, over the controller's REST API. Prints for people; `--json` gives the API's own answer."""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import DeadlineExceeded, InputError

if TYPE_CHECKING:
    from cloud_sync.controller.client import Client

_POLL_S = 0.5
_ENDS = ("confirmed", "reverted", "refused", "superseded")


class Command:
    """Dispatches to the fleet's subcommands."""

    summary = "the operator's side of a fleet: list, show, push, token, why"
    example = "edge-runtime fleet push deployment.yaml --gateway gw-1 --wait"

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument("--profile", type=Path, metavar="FILE", help="where the controller is (default: $EDGE_RUNTIME_PROFILE)")
        commands = parser.add_subparsers(dest="fleet_command", metavar="COMMAND", required=True)
        for name, (configure, _run, text) in _COMMANDS.items():
            command = commands.add_parser(name, help=text, description=text)
            configure(command)
            command.add_argument("--json", action="store_true", help="print one JSON document")

    def run(self, args: Namespace) -> int:
        return _COMMANDS[args.fleet_command][1](args)


def _client(args: Namespace) -> Client:
    from cloud_sync.controller.client import Client, default_profile_path, load_profile

    return Client(load_profile(args.profile or default_profile_path()))


# -- login ----------------------------------------------------------------------------------------------------------------


def _configure_login(parser: ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="the controller's API, such as https://controller:8443")
    parser.add_argument("--token", required=True, help="an API token (era1...)")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="certificates that sign the controller's")


def _login(args: Namespace) -> int:
    from cloud_sync.controller.client import Client, Profile, default_profile_path

    profile = Profile(args.url, args.token, str(args.ca.resolve()) if args.ca else None)
    path = args.profile or default_profile_path()
    Client(profile).get("/v1/gateways", limit=1)
    profile.save(path)
    _print(args, {"profile": str(path)}, lambda found: f"Speaking to {args.url}; written to {found['profile']}.")
    return 0


# -- looking --------------------------------------------------------------------------------------------------------------


def _configure_list(parser: ArgumentParser) -> None:
    parser.add_argument("--online", action="store_true", help="only those that are connected")


def _list(args: Namespace) -> int:
    client, found, after = _client(args), [], ""
    while page := client.get("/v1/gateways", after=after, limit=500, online=True if args.online else None):
        found += page
        after = page[-1]["gateway"]
    _print(args, found, lambda rows: _table(("gateway", "link", "runs", "phase", "version"), [_gateway_row(row) for row in rows]))
    return 0


def _gateway_row(row: dict[str, Any]) -> tuple[str, ...]:
    reported = row.get("state", {}).get("status", {}).get("deployment", {})
    runs = "factory" if reported.get("slot") == "factory" else f"revision {reported['running_revision']}" if reported else "-"
    return row["gateway"], "online" if row["online"] else "offline", runs, str(reported.get("phase", "-")), row.get("version") or "-"


def _configure_gateway(parser: ArgumentParser) -> None:
    parser.add_argument("gateway", metavar="GATEWAY")


def _show(args: Namespace) -> int:
    from cloud_sync.controller.client import segment

    _print(args, _client(args).get(f"/v1/gateways/{segment(args.gateway)}"), _describe)
    return 0


def _describe(found: dict[str, Any]) -> str:
    ledger = found.get("state", {}).get("ledger", {})
    accounts = found["accounts"]
    lines = [
        f"{found['gateway']}: {'online' if found['online'] else 'offline'}, version {found['version'] or '-'}, site {found['site'] or '-'}",
        f"records: {accounts['rows']} here, {accounts['holes']} missing, {accounts['duplicates']} came twice and were kept once",
        f"its ledger: {json.dumps(ledger)}",
        "",
        _table(
            ("revision", "phase", "pushed by", "reason"),
            [(str(d["revision"]), d["phase"], d["created_by"], d["reason"] or "-") for d in found["deployments"]],
        ),
    ]
    return "\n".join(lines)


def _why(args: Namespace) -> int:
    from cloud_sync.controller.client import segment

    found = _client(args).get(f"/v1/gateways/{segment(args.gateway)}/why")
    _print(args, found, lambda answer: "\n".join(answer["sentences"]))
    return 0


# -- changing -------------------------------------------------------------------------------------------------------------


def _configure_push(parser: ArgumentParser) -> None:
    parser.add_argument("deployment", type=Path, metavar="FILE", help="the deployment, YAML or JSON")
    whom = parser.add_mutually_exclusive_group(required=True)
    whom.add_argument("--gateway", action="append", default=[], metavar="NAME", help="whom to push to; may be given several times")
    whom.add_argument("--all", action="store_true", help="every gateway of the fleet")
    parser.add_argument("--days", type=float, default=30.0, help="how long it may be taken (default: %(default)g)")
    parser.add_argument("--expect", type=int, metavar="REVISION", help="refuse when the newest revision is another")
    parser.add_argument("--wait", type=float, nargs="?", const=300.0, metavar="S", help="until every gateway has confirmed or refused it")


def _push(args: Namespace) -> int:
    try:
        text = args.deployment.read_text()
    except (OSError, UnicodeDecodeError) as err:
        raise InputError(f"{args.deployment}: {err}") from err
    client = _client(args)
    body = {"document": text, "gateways": args.gateway, "every": args.all, "days": args.days, "expected_revision": args.expect}
    made = client.post("/v1/deployments", body)
    ends = _wait(client, made, args.wait) if args.wait else {}
    for row in made:
        row |= ends.get(row["gateway"], {})
    _print(args, made, lambda rows: _table(("gateway", "revision", "result", "reason"), [_push_row(row) for row in rows]))
    return 0 if all(row.get("phase", "confirmed") == "confirmed" for row in made) else 1


def _push_row(row: dict[str, Any]) -> tuple[str, ...]:
    result = row.get("phase") or ("unchanged" if row["unchanged"] else "offered")
    return row["gateway"], str(row["revision"]), result, row.get("reason") or "-"


def _wait(client: Client, made: Sequence[dict[str, Any]], limit_s: float) -> dict[str, dict[str, Any]]:
    """What became of every push. Raises DeadlineExceeded naming those that are still open."""
    from cloud_sync.controller.client import segment

    ends: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + limit_s
    while len(ends) < len(made):
        for row in made:
            name = row["gateway"]
            if name not in ends:
                history = client.get(f"/v1/gateways/{segment(name)}")["deployments"]
                mine = next(d for d in history if d["revision"] == row["revision"])
                if mine["phase"] in _ENDS:
                    ends[name] = {"phase": mine["phase"], "reason": mine["reason"]}
        if len(ends) == len(made):
            break
        if time.monotonic() > deadline:
            waiting = ", ".join(row["gateway"] for row in made if row["gateway"] not in ends)
            raise DeadlineExceeded(f"no answer within {limit_s:g} s from {waiting}; look: edge-runtime fleet why NAME")
        time.sleep(_POLL_S)
    return ends


def _configure_token(parser: ArgumentParser) -> None:
    parser.add_argument("--gateway", default="", metavar="NAME", help="the only name that may join with it (default: any)")
    parser.add_argument("--hours", type=float, default=24.0, help="how long it may be used (default: %(default)g)")
    parser.add_argument("--rejoin", action="store_true", help="let it take the name over, and end the certificates that the name has")


def _token(args: Namespace) -> int:
    made = _client(args).post("/v1/join-tokens", {"gateway": args.gateway, "hours": args.hours, "rejoin": args.rejoin})
    _print(
        args, made, lambda found: f"{found['token']}\n\nOn the gateway: edge-runtime join {found.get('url', '')} --token {found['token']}"
    )
    return 0


def _configure_revoke(parser: ArgumentParser) -> None:
    _configure_gateway(parser)
    parser.add_argument("--reason", default="", help="for the audit log")


def _revoke(args: Namespace) -> int:
    from cloud_sync.controller.client import segment

    answer = _client(args).post(f"/v1/gateways/{segment(args.gateway)}/revoke", {"reason": args.reason})
    _print(args, answer, lambda _: f"{args.gateway} may not connect any more. It goes on deciding by itself.")
    return 0


# -- printing -------------------------------------------------------------------------------------------------------------


def _print(args: Namespace, answer: Any, text: Callable[[Any], str]) -> None:
    print(json.dumps(answer) if args.json else text(answer))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(str(row[column])) for row in [head, *rows]) for column in range(len(head))]
    return "\n".join("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows])


_COMMANDS: dict[str, tuple[Callable[[ArgumentParser], None], Callable[[Namespace], int], str]] = {
    "login": (_configure_login, _login, "remember where the controller is"),
    "list": (_configure_list, _list, "every gateway: link, what it runs, phase"),
    "show": (_configure_gateway, _show, "one gateway: accounts, ledger, history of its deployments"),
    "why": (_configure_gateway, _why, "why a gateway runs what it runs, in sentences"),
    "push": (_configure_push, _push, "sign a deployment and offer it to gateways"),
    "token": (_configure_token, _token, "a one-use token for a new gateway to join with"),
    "revoke": (_configure_revoke, _revoke, "end a gateway's certificate"),
}
