"""`bench`: runs the benchmarks of the source checkout, each in a process of its own, and prints them beside their references.

A benchmark is `benchmarks/bench_<name>.py` with `run() -> {"rows": [{"what", "value", "unit", "reference", "target"}...]}`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from edge_runtime.errors import InputError

_FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
_TIMEOUT_S = 600


class Command:
    """Needs a source checkout: benchmarks are not installed."""

    summary = "run the benchmarks, each with its reference in the same run"
    example = "edge-runtime bench store uplink --json"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("names", nargs="*", metavar="NAME", help="which ones (default: all)")
        parser.add_argument("--json", action="store_true", help="print one JSON document")

    def run(self, args: argparse.Namespace) -> int:
        results: dict[str, Any] = {}
        for name in _choose(args.names):
            print(f"bench {name} ...", file=sys.stderr, flush=True)
            results[name] = _run(name)
            if not args.json:
                print("\n".join(_table(name, results[name])), flush=True)
        if args.json:
            print(json.dumps(results, indent=2))
        return 1 if any("error" in result for result in results.values()) else 0


def _choose(wanted: list[str]) -> list[str]:
    known = sorted(path.stem.removeprefix("bench_") for path in _FOLDER.glob("bench_*.py"))
    if not known:
        raise InputError(f"no benchmarks in {_FOLDER}: they come with a source checkout (git clone, then make bench)")
    for name in wanted:
        if name not in known:
            raise InputError(f"no benchmark `{name}` (known: {', '.join(known)})")
    return wanted or known


def _run(name: str) -> dict[str, Any]:
    code = f"import json, runpy; print(json.dumps(runpy.run_path({str(_FOLDER / f'bench_{name}.py')!r})['run']()))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=_FOLDER.parent, timeout=_TIMEOUT_S, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {_TIMEOUT_S} s"}
    if done.returncode or not done.stdout.strip():
        return {"error": f"ended with code {done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _table(name: str, result: dict[str, Any]) -> list[str]:
    if "error" in result:
        return [f"{name}: FAILED, {result['error']}"]
    lines = [f"{name}", f"  {'what':58s} {'value':>12s} {'unit':8s} {'reference':>12s} {'target':>12s}"]
    for row in result.get("rows", ()):
        cells = [_number(row.get(key)) for key in ("value", "reference", "target")]
        lines.append(f"  {row['what']:58s} {cells[0]:>12s} {row.get('unit', ''):8s} {cells[1]:>12s} {cells[2]:>12s}")
    return lines


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
