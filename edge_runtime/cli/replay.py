"""`replay`: recorded data through a deployment, bit-identical on repetition; decisions as JSON Lines, and a summary."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import ConfigError, InputError

if TYPE_CHECKING:
    from edge_runtime.replay import Outcome


class Command:
    """Needs no gateway file: sensors are matched to columns by name."""

    summary = "run recorded data through the whole pipeline under a virtual clock"
    example = "edge-runtime replay deployment.yaml --data recording.csv --label anomaly --out decisions.jsonl"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("deployment", type=Path, help="the deployment, YAML or JSON")
        parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="FILE", help="recordings: CSV or npz")
        parser.add_argument("--map", action="append", default=[], metavar="SENSOR=COLUMN", help="which column a sensor reads (repeatable)")
        parser.add_argument("--label", metavar="COLUMN", help="score alarms against this column, row by row")
        parser.add_argument("--alarm", action="append", default=[], metavar="RULE", help="rules that count as alarm (default: all)")
        parser.add_argument("--against", type=Path, metavar="OTHER", help="another deployment: show which actuations would change")
        parser.add_argument("--speed", default="max", metavar="max|X", help="as fast as possible, or X times real time (default: max)")
        parser.add_argument("--out", type=Path, metavar="FILE", help="write the decisions there instead of to stdout")
        parser.add_argument("--strict", action="store_true", help="refuse recordings with malformed rows instead of counting them")
        parser.add_argument("--json", action="store_true", help="decisions as JSON Lines, then one line {'summary': ...}")

    def run(self, args: argparse.Namespace) -> int:
        outcome = _replay(args.deployment, args)
        summary = outcome.summary()
        if args.against is not None:
            from edge_runtime.replay import compare

            summary["against"] = compare(outcome, _replay(args.against, args))
        with ExitStack() as stack:
            out = stack.enter_context(args.out.open("w")) if args.out else sys.stdout if args.json else None
            if out is not None:
                out.writelines(json.dumps(line, sort_keys=True) + "\n" for line in outcome.lines)
        print(json.dumps({"summary": summary}) if args.json else "\n".join(_tell(summary)))
        return 0


def _replay(path: Path, args: argparse.Namespace) -> Outcome:
    from edge_runtime.config.check import check_files
    from edge_runtime.config.load import load_deployment
    from edge_runtime.replay import Replay, read_all
    from edge_runtime.serving import Served, serve

    problems = [problem for problem in check_files([path]) if problem.fatal]
    if problems:
        raise ConfigError(problems)
    deployment = load_deployment(path)

    async def play() -> Outcome:
        async def unprobed(key: str) -> bool:
            return False

        first = await serve(deployment, path.parent, path.parent, probed=unprobed, passed=lambda key: None)
        ready: list[Served] = [first]

        async def fresh() -> Served:
            async def known(key: str) -> bool:
                return True

            return await serve(deployment, path.parent, path.parent, probed=known, passed=lambda key: None)

        replay = Replay(
            deployment,
            ready.pop,
            columns=_mapping(args.map),
            label=args.label,
            alarms=args.alarm,
            speed=_speed(args.speed),
        )
        for recording in read_all(args.data, strict=args.strict):
            if not ready:
                ready.append(await fresh())
            await replay.run(recording)
            _progress(f"{recording.name}: {recording.report.rows} rows")
        return replay.outcome

    return asyncio.run(play())


def _mapping(pairs: Iterable[str]) -> dict[str, str]:
    mapping = {}
    for pair in pairs:
        sensor, equals, column = pair.partition("=")
        if not equals or not sensor or not column:
            raise InputError(f"--map: expected SENSOR=COLUMN, got `{pair}`")
        mapping[sensor] = column
    return mapping


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < 1e9:
        raise InputError(f"--speed: expected `max` or a number above 0, got `{text}`")
    return speed


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:60s}", end="", file=sys.stderr, flush=True)


def _tell(summary: dict[str, Any]) -> list[str]:
    lines = [
        f"rows {summary['rows']}  duplicates {summary['duplicates']}  out of order {summary['out_of_order']}"
        f"  malformed {summary['malformed']}",
        f"cells {summary['cells']} = readings {summary['readings']} + dropped {sum(summary['dropped'].values())}"
        f"   (missing among the readings: {summary['cells_missing']})",
        f"inferences {summary['inferences']}  decisions {summary['decisions']}  actions {summary['actions']}",
        f"digest {summary['digest']}",
    ]
    score = summary.get("score")
    if score:
        lines.append(
            f"precision {score['precision']:.3f}  recall {score['recall']:.3f}  F1 {score['f1']:.3f}  "
            f"FAR {score['far']:.2f} %  MAR {score['mar']:.2f} %"
        )
    for key, title in (("only_before", "only with this deployment"), ("only_after", "only with the other")):
        changed = summary.get("against", {}).get(key, ())
        lines += [f"{title}: {len(changed)} actuations"] + [f"  {line}" for line in changed[:20]] if "against" in summary else []
    return lines
