"""`demo`: the whole story on embedded defaults, as a live view for people or one JSON document for machines."""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_runtime.demo.fleet import FleetStage
from edge_runtime.demo.stage import run
from edge_runtime.demo.story import Event, Outcome, Story
from edge_runtime.errors import EdgeRuntimeError, MissingDependency


class Command:
    """Sets up a controller and a gateway, pushes to it, breaks everything one after the other, and checks that nothing was lost."""

    summary = "watch a gateway join, take a good push, undo a bad one, act, lose its network, be killed, and lose nothing"
    example = "edge-runtime demo --duration 60 --json --no-console"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--duration", type=float, default=75.0, metavar="S", help="length of the story in seconds (default: %(default)g)"
        )
        parser.add_argument("--port", type=int, default=0, metavar="P", help="port of the demo's broker (default: a free one)")
        parser.add_argument(
            "--broker", choices=("mosquitto", "amqtt"), default="mosquitto", help="amqtt: the embedded one, even if mosquitto is installed"
        )
        parser.add_argument("--no-console", action="store_true", help="plain lines instead of the live view")
        parser.add_argument("--json", action="store_true", help="print one JSON document to stdout at the end")
        parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this folder and keep it")

    def run(self, args: argparse.Namespace) -> int:
        with contextlib.ExitStack() as stack:
            directory = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-runtime-demo-")))
            directory.mkdir(parents=True, exist_ok=True)
            stage = FleetStage(directory.resolve(), args.port or _free_port(), args.broker)
            story = Story(stage, args.duration, _observer(args, stack))
            outcome, problems = run(_play(stage, story))
        return _finish(args, story, outcome, problems)


async def _play(stage: FleetStage, story: Story) -> tuple[Outcome | None, list[str]]:
    try:
        await stage.set_up()
        outcome = await story.run()
        return outcome, outcome.problems
    except EdgeRuntimeError as err:
        return None, [str(err)]
    finally:
        await stage.close()


def _finish(args: argparse.Namespace, story: Story, outcome: Outcome | None, problems: list[str]) -> int:
    if args.json:
        print(json.dumps(_document(story, outcome, problems), indent=2))
    for problem in problems:
        print(f"edge-runtime demo: {problem}", file=sys.stderr)
    if outcome is not None and not problems and not args.json:
        ledger, sink = outcome.ledger, outcome.sink
        print(
            f"offered {ledger['offered']} = delivered {ledger['delivered']}, dropped 0; database rows {sink.rows}, missing {sink.missing}"
        )
        print("Next: edge-runtime run --config gateway.yaml   (docs/how-to/first-gateway.md)")
    return 1 if problems else 0


def _document(story: Story, outcome: Outcome | None, problems: list[str]) -> dict[str, Any]:
    document: dict[str, Any] = {
        "ok": not problems,
        "duration_s": round(story.elapsed_s, 2),
        "events": [event.as_dict() for event in story.events],
        "ledger": outcome.ledger if outcome else None,
        "sink": None,
        "problems": problems,
    }
    if outcome:
        document["sink"] = {"rows": outcome.sink.rows, "duplicates": outcome.sink.duplicates, "missing": outcome.sink.missing}
    return document


def _observer(args: argparse.Namespace, stack: contextlib.ExitStack) -> Callable[[Event | dict[str, Any]], None]:
    if args.no_console or not sys.stderr.isatty():
        return _print_event
    try:
        from edge_runtime.demo.view import LiveView
    except ImportError as err:
        raise MissingDependency("rich", "console") from err
    return stack.enter_context(LiveView(args.duration)).observe


def _print_event(seen: Event | dict[str, Any]) -> None:
    if not isinstance(seen, dict):
        print(f"{seen.t_s:6.1f} s  {seen.sentence}", file=sys.stderr, flush=True)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
