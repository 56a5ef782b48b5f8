"""`edge-runtime controller`: `init` makes a controller, `run` runs it, `approve` signs models offline, `keys` changes and renews keys;
`sink` and `broker` are parts of it alone, to try things out."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cloud_sync.controller import approve, keys
from edge_runtime.errors import InputError

if TYPE_CHECKING:
    from cloud_sync.controller.sink import SinkSession
    from cloud_sync.mqtt import MqttOptions

_SINK_EXAMPLE = "example: edge-runtime controller sink --host 127.0.0.1 --port 1883 --database sink.db"


class Command:
    """Dispatches to the controller's subcommands."""

    summary = "set up and run the controller of a fleet"
    example = "edge-runtime controller init --dir controller && edge-runtime controller run --dir controller"

    def configure(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="controller_command", metavar="COMMAND", required=True)
        init = commands.add_parser("init", help="make a controller: keys, authority, certificates, broker configuration, database")
        _configure_init(init)
        run = commands.add_parser("run", help="run the controller: telemetry in, deployments out, REST API, broker")
        run.add_argument("--dir", type=Path, required=True, metavar="DIR", help="the controller's folder")
        run.add_argument("--no-broker", action="store_true", help="start no broker: it runs apart (controller broker --dir DIR)")
        run.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="default: %(default)s")
        approve.configure(commands.add_parser("approve", help="sign models with the offline keys, so that they may be pushed"))
        keys.configure(commands.add_parser("keys", help="signing keys: show, rotate, renew; take back the approval of models"))
        sink = commands.add_parser("sink", help="write every gateway's telemetry into a database", epilog=_SINK_EXAMPLE)
        _configure_sink(sink)
        broker = commands.add_parser("broker", help="run a broker on the loopback: mosquitto when it is installed, else the embedded one")
        broker.add_argument("--port", type=int, default=1883, help="default: %(default)s")
        broker.add_argument("--dir", type=Path, required=True, metavar="DIR", help="a controller's folder, or one for its own files")
        broker.add_argument("--prefer", choices=("mosquitto", "amqtt"), default="mosquitto", help="default: %(default)s")

    def run(self, args: Namespace) -> int:
        """`init` ends by itself, the others with SIGTERM or SIGINT."""
        commands: dict[str, Callable[[Namespace], int]] = {
            "init": _init,
            "run": _run,
            "approve": approve.run,
            "keys": keys.run,
            "broker": _broker,
        }
        return commands[args.controller_command](args) if args.controller_command in commands else asyncio.run(_sink(args))


def _run(args: Namespace) -> int:
    from cloud_sync.controller.run import run

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.basicConfig(level=args.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    asyncio.run(run(args.dir, start_broker=not args.no_broker))
    return 0


def _configure_init(parser: ArgumentParser) -> None:
    parser.description = "Makes a controller, or completes one; nothing that is there is made anew."
    parser.add_argument("--dir", type=Path, required=True, metavar="DIR", help="the controller's folder")
    parser.add_argument(
        "--name", action="append", default=[], metavar="HOST", help="a name or address of this machine; several may be given"
    )
    parser.add_argument("--tenant", help="whose fleet it is (default: default)")
    parser.add_argument("--database", metavar="URL", help="a file, or postgresql://USER@HOST/NAME (default: data/controller.db in DIR)")
    parser.add_argument("--passphrase", action="store_true", help=f"encrypt the offline keys: ask for one, or take ${approve.VARIABLE}")
    parser.add_argument("--new-token", action="store_true", help="make another API token where the first one was lost")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _init(args: Namespace) -> int:
    from cloud_sync.controller.setup import initialize

    passphrase = approve.passphrase() if args.passphrase else None
    done = initialize(args.dir, args.name, tenant=args.tenant, database=args.database, passphrase=passphrase, new_token=args.new_token)
    if args.json:
        print(
            json.dumps(
                {
                    "dir": str(done.folder),
                    "tenant": done.tenant,
                    "url": done.url,
                    "made": done.made,
                    "kept": done.kept,
                    "token": done.token,
                    "ca": str(done.folder / "ca/ca.pem"),
                }
            )
        )
        return 0
    for word, things in (("made", done.made), ("kept", done.kept)):
        if things:
            print(f"{word}: {', '.join(things)}")
    if done.token:
        print(f"\nAPI token (approver), shown this once:\n  {done.token}")
    print(f"\nNext:\n  edge-runtime controller run --dir {args.dir}")
    if done.token:
        print(f"  edge-runtime fleet login {done.url} --token {done.token} --ca {done.folder / 'ca/ca.pem'}")
    if (done.folder / "keys/offline").exists():
        print(f"\nMove {done.folder / 'keys/offline'} to a place that is not on this machine: it signs models and replaces any other key.")
    return 0


def _configure_sink(parser: ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="the broker (default: %(default)s)")
    parser.add_argument("--port", type=int, help="its port (default: 1883, or 8883 with --ca)")
    parser.add_argument("--database", required=True, metavar="URL", help="SQLite file, made when absent, or postgresql://USER@HOST/NAME")
    parser.add_argument("--tenant", default="+", help="only this tenant's gateways (default: all)")
    parser.add_argument("--share", default="", metavar="GROUP", help="share the telemetry with other sinks of this group (MQTT 5 brokers)")
    parser.add_argument("--client-id", default="", help="default: sink-<process id>")
    parser.add_argument("--protocol", choices=("auto", "5", "3.1.1"), default="auto", help="MQTT version (default: %(default)s)")
    parser.add_argument("--ca", metavar="FILE", help="TLS: certificates that sign the broker's")
    parser.add_argument("--cert", metavar="FILE", help="mutual TLS: this sink's certificate")
    parser.add_argument("--key", metavar="FILE", help="mutual TLS: its key")
    parser.add_argument("--username")
    parser.add_argument("--password-file", type=Path, metavar="FILE", help="the first line is the password")


def _options(args: Namespace) -> MqttOptions:
    from cloud_sync.mqtt import MqttOptions

    return MqttOptions(
        host=args.host,
        port=_port(args),
        client_id=args.client_id or f"sink-{os.getpid()}",
        ca=args.ca,
        cert=args.cert,
        key=args.key,
        username=args.username,
        password=_password(args.password_file),
        protocol=args.protocol,
        receive_maximum=256,
        session_expiry_s=0,
    )


def _port(args: Namespace) -> int:
    return args.port or (8883 if args.ca else 1883)


def _password(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text().partition("\n")[0]
    except OSError as err:
        raise InputError(f"--password-file: cannot read {path}: {err.strerror}") from err


async def _sink(args: Namespace) -> int:
    from cloud_sync.controller.engine import open_database
    from cloud_sync.controller.sink import Sink
    from cloud_sync.mqtt import open_transport

    transport = open_transport(_options(args))
    database = await open_database(args.database)
    writer = database.writer()
    announced = False

    def announce(session: SinkSession) -> None:
        nonlocal announced
        if not announced:
            print(
                json.dumps({"ready": True, "broker": f"{args.host}:{_port(args)}", "database": database.address.shown, "pid": os.getpid()}),
                flush=True,
            )
        announced = True

    running = asyncio.ensure_future(Sink(transport, writer, share=args.share, tenant=args.tenant, on_ready=announce).run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        return 0
    finally:
        writer.close()
        await database.close()
    return 0


def _broker(args: Namespace) -> int:
    """Ends with its broker, or the broker with it."""
    from cloud_sync.controller.broker import controllers_broker, start_broker
    from cloud_sync.controller.settings import FILE

    mine = None
    if (args.dir / FILE).exists():
        from cloud_sync.controller.settings import load

        mine = controllers_broker(load(args.dir))
    with mine or start_broker(args.port, args.dir, prefer=args.prefer) as broker:
        print(json.dumps({"ready": True, "broker": broker.kind, "port": broker.port, "pid": broker.pid}), flush=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: broker.stop())
        return broker.wait()
