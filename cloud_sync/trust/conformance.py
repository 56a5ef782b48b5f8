"""The command that the TUF project's conformance suite drives: `python -m cloud_sync.trust.conformance`.

It is the gateway's updater over HTTP instead of MQTT: same limits, same bootstrap from the first root. Not a part of the gateway.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.ngclient import FetcherInterface

from cloud_sync.trust.updater import TimedUpdater
from edge_runtime.errors import InputError

_FIRST_ROOT = "first-root"
_TIMEOUT_S = 10.0
_PIECE_BYTES = 64 * 1024


class HttpFetcher(FetcherInterface):
    """Reads over HTTP, a piece at a time; the updater stops it at the declared size."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        if not url.startswith(("http://", "https://")):
            raise DownloadError(f"expected http or https, got {url[:100]}")
        try:
            response = urllib.request.urlopen(url, timeout=_TIMEOUT_S)  # noqa: S310 -- the scheme was checked
        except urllib.error.HTTPError as err:
            raise DownloadHTTPError(str(err), err.code) from err
        with response:
            while piece := response.read(_PIECE_BYTES):
                yield piece


def main() -> int:
    """Exit code 0 when the command succeeded whole, else 1 with the reason on stderr."""
    args = _parser().parse_args()
    try:
        {"init": _init, "refresh": _refresh, "download": _download}[args.command](args)
    except (RepositoryError, DownloadError, InputError, OSError, ValueError) as err:
        sys.stderr.write(f"{type(err).__name__}: {err}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cloud_sync.trust.conformance")
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-dir", type=Path)
    parser.add_argument("--target-base-url")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("trusted_root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    return parser


def _init(args: argparse.Namespace) -> None:
    for name in (_FIRST_ROOT, "root.json"):
        shutil.copyfile(args.trusted_root, args.metadata_dir / name)


def _refresh(args: argparse.Namespace) -> None:
    _updater(args).refresh()


def _download(args: argparse.Namespace) -> None:
    updater = _updater(args)
    updater.refresh()
    updater.target_dir = str(args.target_dir)
    for name in args.target_name:
        info = updater.get_targetinfo(name)
        if info is None:
            raise InputError(f"{name} is not in the repository")
        if updater.find_cached_target(info) is None:
            updater.download_target(info, target_base_url=args.target_base_url)


def _updater(args: argparse.Namespace) -> TimedUpdater:
    bootstrap = (args.metadata_dir / _FIRST_ROOT).read_bytes()
    return TimedUpdater(args.metadata_dir, args.metadata_url, HttpFetcher(), bootstrap, time.time_ns())


if __name__ == "__main__":
    sys.exit(main())
