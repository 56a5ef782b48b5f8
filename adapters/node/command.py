"""`edge-runtime node`: builds, flashes and emulates the microcontroller node, asks it, pushes models onto it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.errors import InputError

_MOST_BYTES = 1 << 20
_BAR = 30


class Command:
    """Dispatches to the subcommands; everything heavy is imported by the one that needs it."""

    summary = "the microcontroller node: build its firmware, emulate it, push models onto it"
    example = """edge-runtime node emulate --duration 20
  edge-runtime node info --port /dev/ttyACM0
  edge-runtime node push-model build/thermal.ern --uri coap://192.168.7.20"""

    def configure(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="node_command", metavar="COMMAND", required=True, title="commands")
        build = commands.add_parser("build", help="compile the firmware: firmware.elf, firmware.bin and their sizes")
        build.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for what is built")
        build.add_argument("--compiler", choices=("gcc", "zig"), help="default: gcc where it is installed, else zig")
        build.add_argument("--json", action="store_true", help="print one JSON document")
        build.set_defaults(node_run=_build)
        provision = commands.add_parser("provision", help="a node's own page of flash: its number, address and key")
        provision.add_argument("--id", type=int, required=True, metavar="N", help="1 to 65535, the node's number")
        provision.add_argument("--address", required=True, metavar="IP/BITS", help="its own, such as 192.168.7.20/24")
        provision.add_argument(
            "--readonly", action="store_true", help="CoAP, which is not encrypted, may move no lines and bring no models"
        )
        provision.add_argument("--key", type=Path, metavar="FILE", help="its key, 32 bytes (default: a new one, written beside the page)")
        provision.add_argument("--out", type=Path, required=True, metavar="FILE", help="the page, such as node-7.bin")
        provision.add_argument("--json", action="store_true", help="print one JSON document")
        provision.set_defaults(node_run=_provision)
        flash = commands.add_parser("flash", help="bring the firmware, and a node's own page, onto a board through openocd")
        flash.add_argument("--elf", type=Path, metavar="FILE", help="what `node build` made (default: this version's, built when needed)")
        flash.add_argument("--page", type=Path, metavar="FILE", help="what `node provision` made (default: none; the page there stays)")
        flash.add_argument("--dry-run", action="store_true", help="only print the command")
        flash.set_defaults(node_run=_flash)
        emulate = commands.add_parser("emulate", help="an emulated node and a gateway beside it: heat it, and see it act")
        emulate.add_argument("--duration", type=float, default=20.0, metavar="S", help="heat and cool for so long (default: %(default)g)")
        emulate.add_argument("--alone", action="store_true", help="no gateway: the node for yours, until stopped; takes orders on stdin")
        emulate.add_argument("--page", type=Path, metavar="FILE", help="with --alone: a node provisioned with this page")
        emulate.add_argument("--keep", type=Path, metavar="DIR", help="work in this folder and keep it")
        emulate.add_argument("--json", action="store_true", help="print one JSON document")
        emulate.set_defaults(node_run=_emulate)
        for name, run, text in _ON_A_NODE:
            one = commands.add_parser(name, help=text)
            _add_target(one)
            one.set_defaults(node_run=run)
            if name == "push-model":
                one.add_argument("model", type=Path, metavar="FILE", help="a blob (.ern) from `edge-runtime model export-c`")
                one.add_argument("--confirm", type=int, default=60, metavar="S", help="unconfirmed, it is taken back after so long")

    def run(self, args: Namespace) -> int:
        run: Callable[[Namespace], int] = args.node_run
        return run(args)


def _add_target(parser: ArgumentParser) -> None:
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--port", metavar="PORT", help="serial port: /dev/ttyACM0, socket://host:port, rfc2217://host:port")
    target.add_argument("--uri", metavar="URI", help="CoAP address: coap://host[:port]")
    parser.add_argument("--baud", type=int, default=115_200, help="of the serial port (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _build(args: Namespace) -> int:
    from adapters.firmware.build import build, find_compiler

    built = build(args.out, compiler=find_compiler(args.compiler))
    sizes = {"elf": str(built.elf), "text_bytes": built.text_bytes, "model_bytes": built.model_bytes, "ram_bytes": built.ram_bytes}
    _tell(args, sizes, [f"{key.replace('_', ' '):12s} {value}" for key, value in sizes.items()])
    return 0


def _provision(args: Namespace) -> int:
    from adapters.node.board import provision

    made = provision(args.out, node_id=args.id, address=args.address, readonly=args.readonly, key=args.key)
    lines = [f"{key:8s} {value}" for key, value in made.items()]
    _tell(args, made, [*lines, f"next: edge-runtime node flash --page {args.out}"])
    return 0


def _flash(args: Namespace) -> int:
    from adapters.node.board import flash

    return flash(args.elf, args.page, dry_run=args.dry_run)


def _emulate(args: Namespace) -> int:
    from adapters.node.emulate import emulate

    if args.alone:
        return _alone(args)
    if not 5 <= args.duration <= 86_400:
        raise InputError(f"--duration: expected 5 to 86400 seconds, got {args.duration:g}")
    with tempfile.TemporaryDirectory(prefix="edge-runtime-node-") as scratch:
        folder = (args.keep or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        stream = sys.stderr if args.json else sys.stdout
        outcome = emulate(folder, args.duration, lambda line: print(line, file=stream, flush=True))
    _tell(args, msgspec.to_builtins(outcome) | {"ok": outcome.ok}, outcome.table())
    return 0 if outcome.ok else 1


def _alone(args: Namespace) -> int:
    from adapters.firmware.emulator import Emulator
    from adapters.node.emulate import ACTIONS, answers, coap_uri

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Emulator(provision=_read(args.page) if args.page else None) as node:
        ready = {"port": node.serial_url, "uri": coap_uri(node), "orders": list(ACTIONS)}
        text = f"UART {node.serial_url}\nCoAP {coap_uri(node)}\nOrders: {', '.join(ACTIONS)}. Ctrl-C ends it."
        print(json.dumps(ready) if args.json else text, flush=True)
        for answer in answers(node, sys.stdin):
            print(answer, flush=True)
        while True:  # nobody there to give orders
            signal.pause()


def _info(args: Namespace) -> int:
    async def ask(node: Any) -> dict[str, Any]:
        model = await node.model()
        found = {"node": await node.hello(), "model": model, "lines": await node.lines(), "stats": await node.stats()}
        told: dict[str, Any] = msgspec.to_builtins(found)
        told["model"]["source"] = model.source.name.lower()
        return told

    found = _with_node(args, ask)
    lines = [f"{section:7s} {key:20s} {value}" for section in ("node", "model", "stats") for key, value in found[section].items()]
    lines += [f"line {number}  {'high' if line[0] else 'low'}" for number, line in enumerate(found["lines"])]
    _tell(args, found, lines)
    return 0


def _push(args: Namespace) -> int:
    from adapters.node.push import push
    from adapters.node.upload import Phase

    if args.model.suffix in (".onnx", ".tflite") or args.model.is_dir():
        raise InputError(f"{args.model}: expected a blob; make one with `edge-runtime model export-c {args.model} --out DIR`")
    blob = _read(args.model)
    outcome = _with_node(args, lambda node: push(node, blob, progress=_bar(args.model.name), confirm_s=args.confirm))
    said = {"phase": outcome.phase.value, "name": outcome.image.name, "version": outcome.image.version, "running": outcome.running.version}
    lines = [f"{outcome.image.name} version {outcome.image.version}: {outcome.phase.value}. Version {outcome.running.version} runs."]
    _tell(args, said | {"reason": outcome.reason}, lines + ([outcome.reason] if outcome.reason else []))
    return 0 if outcome.phase is Phase.CONFIRMED else 1


def _rollback(args: Namespace) -> int:
    async def back(node: Any) -> Any:
        await node.rollback()
        return await node.model()

    running = _with_node(args, back)
    _tell(args, msgspec.to_builtins(running), [f"{running.name} version {running.version} runs, from {running.source.name.lower()}"])
    return 0


_ON_A_NODE = (
    ("info", _info, "who a node is, which model it runs, what it has counted"),
    ("push-model", _push, "send a model, try it in a boot of its own, confirm it or take it back"),
    ("rollback", _rollback, "go back to the model before"),
)


class _Deaf:
    """Takes the node's events and needs none of them."""

    def on_reading(self, reading: object) -> None: ...

    def on_result(self, result: object) -> None: ...

    def on_notice(self, notice: object) -> None: ...

    def on_lost(self, reason: str) -> None: ...


def _with_node(args: Namespace, ask: Callable[[Any], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        node = _node(args)
        await node.open(_Deaf())
        try:
            return await ask(node)
        finally:
            await node.close()

    return asyncio.run(run())


def _node(args: Namespace) -> Any:
    if args.uri:
        from adapters.coap import open_node

        return open_node(args.uri)
    from adapters.microcontroller import open_node as open_serial

    return open_serial(args.port, args.baud)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path}: expected at most {_MOST_BYTES} bytes, got {path.stat().st_size}")
        return path.read_bytes()
    except OSError as err:
        raise InputError(f"{path}: cannot be read: {err.strerror}") from err


def _bar(name: str) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            filled = _BAR * done // max(1, total)
            end = "\n" if done == total else ""
            print(f"\r{name} [{'#' * filled:{_BAR}s}] {done}/{total}", end=end, file=sys.stderr, flush=True)

    return show


def _tell(args: Namespace, document: Any, lines: list[str]) -> None:
    print(json.dumps(document, indent=2, default=str) if args.json else "\n".join(lines))
