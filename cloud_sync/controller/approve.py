"""`controller approve`: signs a model's bundle with the offline keys, after which it may be pushed. Needs no running controller."""

from __future__ import annotations

import getpass
import json
import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from edge_runtime.errors import InputError

VARIABLE = "EDGE_RUNTIME_PASSPHRASE"
"""Where a passphrase may lie for a program that cannot be asked."""


def configure(parser: ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("bundle", type=Path, nargs="+", metavar="TAR", help="bundles as tar: edge-runtime model pack BUNDLE --out TAR")
    parser.add_argument("--dir", type=Path, required=True, metavar="DIR", help="the controller's folder")
    parser.add_argument("--keys", type=Path, metavar="DIR", help="the offline keys (default: DIR/keys/offline)")
    parser.add_argument("--passphrase", action="store_true", help=f"the keys are encrypted: ask, or take ${VARIABLE}")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: Namespace) -> int:
    """Signs every bundle; prints their digests."""
    from cloud_sync.controller.signing import KeyRing, Repository

    repository = Repository.open(args.dir)
    keys = KeyRing(args.keys or repository.offline_keys, passphrase() if args.passphrase else None)
    approved = [repository.approve(bundle, keys) for bundle in args.bundle]
    if args.json:
        sys.stdout.write(
            json.dumps([{"digest": a.digest, "model": a.model, "version": a.version, "name": a.name} for a in approved]) + "\n"
        )
        return 0
    for made in approved:
        sys.stdout.write(f"{made.model} version {made.version} may be pushed: digest {made.digest}\n")
    return 0


def passphrase() -> bytes:
    """The passphrase of the offline keys, from the environment or the terminal. Raises InputError for an empty one."""
    given = os.environ.get(VARIABLE) or getpass.getpass("passphrase of the offline keys: ")
    if not given:
        raise InputError(f"--passphrase: expected one, on the terminal or in ${VARIABLE}")
    return given.encode()
