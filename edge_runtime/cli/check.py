"""`check`: every mistake in gateway files and deployments, as `file:line:key: message`, before anything runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from edge_runtime.errors import InputError


class Command:
    """Static: no hardware is touched and nothing is started."""

    summary = "find every mistake in gateway files and deployments before they run"
    example = "edge-runtime check gateway.yaml    or    edge-runtime check deployment.yaml --gateway gateway.yaml"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="gateway files and deployments, YAML or JSON")
        parser.add_argument("--gateway", type=Path, metavar="FILE", help="judge deployments against this gateway file's bindings too")
        parser.add_argument("--models", type=Path, metavar="DIR", help="where models by digest are: a gateway's STATE/models")
        parser.add_argument("--schema", choices=("gateway", "deployment"), help="print the JSON Schema of a document and exit")
        parser.add_argument("--json", action="store_true", help="print one JSON document")

    def run(self, args: argparse.Namespace) -> int:
        from edge_runtime.config.check import check_files
        from edge_runtime.config.schema import json_schema

        if args.schema:
            print(json.dumps(json_schema(args.schema), indent=2))
            return 0
        if not args.files:
            raise InputError("check: name at least one FILE, or --schema gateway|deployment")
        problems = check_files(args.files, args.gateway, args.models)
        ok = not any(problem.fatal for problem in problems)
        if args.json:
            rows = [{"file": p.file, "line": p.line, "key": p.key, "message": p.message, "fatal": p.fatal} for p in problems]
            print(json.dumps({"ok": ok, "files": [str(path) for path in args.files], "problems": rows}, indent=2))
        else:
            for problem in problems:
                print(problem if problem.fatal else f"{problem} (warning)", file=sys.stderr)
            if ok:
                print(f"ok: {', '.join(str(path) for path in args.files)}")
        return 0 if ok else 2
