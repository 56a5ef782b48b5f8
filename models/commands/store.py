"""`edge-runtime model add | list | remove | pack`: the models on this gateway's disk."""

from __future__ import annotations

import asyncio
from argparse import ArgumentParser, Namespace
from pathlib import Path

import msgspec

from edge_runtime.paths import add_state_option
from models.store import ModelStore


class AddCommand:
    """Verifies, probes and installs one bundle."""

    summary = "verify, probe and put a bundle into this gateway's model store"
    example = "edge-runtime model add pump-anomaly --state /var/lib/edge-runtime"

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder, or a tar of one")
        add_state_option(parser)
        parser.add_argument("--as", dest="use_as", metavar="NAME", help="the name it serves from now on (default: the manifest's)")
        parser.add_argument("--max-bytes", type=int, metavar="N", help="then clear away bundles that nothing uses until the rest fits")
        parser.add_argument("--json", action="store_true", help="one JSON document")

    def run(self, args: Namespace) -> int:
        from models.backends import choose

        store = _store(args)
        bundle = store.install(args.bundle)
        try:
            report = asyncio.run(choose(bundle.model).backend.probe(bundle.model))
        except BaseException:
            if not any(entry.use for entry in store.entries() if entry.digest == bundle.digest):
                store.remove(bundle.digest)
            raise
        name = args.use_as or bundle.manifest.name
        store.use(name, bundle.digest)
        gone = store.collect(args.max_bytes) if args.max_bytes is not None else []
        if args.json:
            print(msgspec.json.encode({"digest": bundle.digest, "name": name, "probe": report, "removed": gone}).decode())
        else:
            print(f"{name}: installed, runs in {report.run_ms:.3f} ms here, takes {report.rss_mb:.1f} MB")
            print(f'  in a deployment: models: {{{name}: {{digest: "{bundle.digest}"}}}}')
            for digest in gone:
                print(f"  removed {digest}")
        return 0


class ListCommand:
    """What the store holds."""

    summary = "the models in this gateway's store"
    example = "edge-runtime model list --json"

    def configure(self, parser: ArgumentParser) -> None:
        add_state_option(parser)
        parser.add_argument("--json", action="store_true", help="one JSON document")

    def run(self, args: Namespace) -> int:
        store = _store(args)
        entries = store.entries()
        if args.json:
            print(msgspec.json.encode({"models": entries}).decode())
            return 0
        for entry in entries:
            print(f"{entry.name:24s} v{entry.version:<4d} {entry.size_bytes / 1024:10.1f} KiB  {entry.use or '-':9s} {entry.digest}")
        if not entries:
            print(f"no models in {store.root}; put one there: edge-runtime model add BUNDLE")
        return 0


class RemoveCommand:
    """Deletes one bundle that nothing uses."""

    summary = "delete a bundle from this gateway's store"
    example = "edge-runtime model remove sha256:1b05..."

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument("digest", metavar="DIGEST", help="as `model list` shows it")
        add_state_option(parser)

    def run(self, args: Namespace) -> int:
        _store(args).remove(args.digest)
        print(f"removed {args.digest}")
        return 0


class PackCommand:
    """One file of a bundle."""

    summary = "a bundle as one file, to carry it"
    example = "edge-runtime model pack pump-anomaly --out pump-anomaly.tar"

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
        parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the tar to write")

    def run(self, args: Namespace) -> int:
        from edge_runtime.bundle import read_bundle
        from models.archive import pack

        bundle = read_bundle(args.bundle)
        pack(bundle, args.out)
        print(f"{args.out}: {args.out.stat().st_size} bytes, {bundle.digest}")
        return 0


def _store(args: Namespace) -> ModelStore:
    return ModelStore(args.state / "models")
