"""`controller keys`: until when what was signed holds; new keys, new lifetimes, approvals taken back. Needs no running controller.

One that runs sees the change within seconds: it tells every gateway, and signs deployments anew after the director's key has changed.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_sync.controller import approve

if TYPE_CHECKING:
    from cloud_sync.controller.signing import KeyRing, Repository

ROLES = ("root", "targets", "snapshot", "timestamp", "director")
SOON_NS = 60 * 86_400 * 10**9
"""How long before its end offline metadata should be renewed: somebody has to bring the keys."""
_EXAMPLE = "example: edge-runtime controller keys rotate director --dir controller --keys /media/targets-key"


def configure(parser: ArgumentParser) -> None:
    """Adds the subcommands and their arguments."""
    parser.epilog = _EXAMPLE
    verbs = parser.add_subparsers(dest="keys_command", metavar="VERB", required=True)
    _folder(verbs.add_parser("list", help="every role, until when what it signed holds, and who is due"))
    rotate = verbs.add_parser("rotate", help="give roles new keys; the old ones count no more", epilog=_EXAMPLE)
    rotate.add_argument("role", nargs="+", choices=ROLES, metavar="ROLE", help=", ".join(ROLES))
    renew = verbs.add_parser("renew", help="sign root or targets for a new lifetime, with the same keys")
    renew.add_argument("role", nargs="+", choices=("root", "targets"), metavar="ROLE", help="root, targets")
    withdraw = verbs.add_parser("withdraw", help="take back the approval of models: no deployment with them is taken any more")
    withdraw.add_argument("digest", nargs="+", metavar="DIGEST", help="sha256:..., as `controller approve` has shown it")
    for verb in (rotate, renew, withdraw):
        _folder(verb)
        verb.add_argument("--keys", type=Path, metavar="DIR", help="the offline keys (default: DIR/keys/offline)")
        verb.add_argument("--passphrase", action="store_true", help=f"the keys are encrypted: ask, or take ${approve.VARIABLE}")


def run(args: Namespace) -> int:
    """Does it, and prints what then holds until when."""
    from cloud_sync.controller.signing import KeyRing, Repository

    repository = Repository.open(args.dir)
    if args.keys_command != "list":
        offline = KeyRing(args.keys or repository.offline_keys, approve.passphrase() if args.passphrase else None)
        _change(repository, offline, args)
    _show(repository, as_json=args.json)
    return 0


def _folder(parser: ArgumentParser) -> None:
    parser.add_argument("--dir", type=Path, required=True, metavar="DIR", help="the controller's folder")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _change(repository: Repository, offline: KeyRing, args: Namespace) -> None:
    if args.keys_command == "rotate":
        repository.rotate(tuple(dict.fromkeys(args.role)), offline)
    elif args.keys_command == "renew":
        for role in dict.fromkeys(args.role):
            repository.renew(role, offline)
    else:
        repository.withdraw(args.digest, offline)


def _show(repository: Repository, *, as_json: bool) -> None:
    now_ns = time.time_ns()
    first, last = repository.term
    roles: list[dict[str, Any]] = [
        {"role": role, "expires_wall_ns": expires, "due": role in ("root", "targets") and expires - now_ns < SOON_NS}
        for role, expires in repository.expiries().items()
    ]
    if as_json:
        models = [model.digest for model in repository.approved()]
        document = {"roles": roles, "director": {"first_revision": first, "last_revision": last}, "models": models}
        sys.stdout.write(json.dumps(document) + "\n")
        return
    for role in roles:
        until = datetime.fromtimestamp(role["expires_wall_ns"] / 1e9, UTC)
        due = "  due: edge-runtime controller keys renew " + role["role"] if role["due"] else ""
        sys.stdout.write(f"{role['role']:<10} holds until {until:%Y-%m-%d %H:%M} UTC{due}\n")
    sys.stdout.write(f"{'director':<10} signs revisions {first} to {last}\n")
