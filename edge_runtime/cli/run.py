"""`run`: the gateway in the foreground, as systemd starts it. SIGTERM and SIGINT stop it within 2 s; SIGHUP reads the deployment again."""

from __future__ import annotations

import argparse
import asyncio
import signal
from functools import partial
from pathlib import Path

from edge_runtime.config.deployment import Deployment
from edge_runtime.config.gateway import GatewayFile
from edge_runtime.errors import ConfigError
from edge_runtime.paths import add_state_option


class Command:
    """Checks both documents, then runs until told to stop."""

    summary = "run the gateway in the foreground (systemd: Type=notify)"
    example = "edge-runtime run --config gateway.yaml --state ./state"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the gateway file")
        add_state_option(parser)
        parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="overrides log.level of the gateway file")

    def run(self, args: argparse.Namespace) -> int:
        from edge_runtime.config.load import load_gateway
        from edge_runtime.logs import configure

        config = load_gateway(args.config)
        configure(args.log_level or config.log.level, config.log.style)
        asyncio.run(_run(config, args.config.resolve(), args.state))
        return 0


async def _run(config: GatewayFile, path: Path, state_dir: Path) -> None:
    from edge_runtime.app import Gateway

    gateway = Gateway(config, path.parent, partial(read_deployment, config, path, state_dir / "models"), state_dir)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, gateway.stop)
    loop.add_signal_handler(signal.SIGHUP, gateway.reload)
    await gateway.run()


def read_deployment(config: GatewayFile, path: Path, models: Path | None = None) -> tuple[Deployment, Path]:
    """The factory deployment that the gateway file names, checked against it and the models here; an empty one when it names none."""
    from edge_runtime.config.check import check_files
    from edge_runtime.config.load import load_deployment

    if config.deployment is None:
        return Deployment(schema=1), path.parent
    document = path.parent / config.deployment
    problems = [problem for problem in check_files([document], gateway=path, models=models) if problem.fatal]
    if problems:
        raise ConfigError(problems)
    return load_deployment(document), document.parent
