"""`edge-runtime model`: the model toolchain and the local model store. It only finds the subcommand; each has a module of its own."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from importlib import import_module

from edge_runtime.ports import CliCommand

SUBCOMMANDS = {
    "inspect": "models.commands.inspect:InspectCommand",
    "probe": "models.commands.probe:ProbeCommand",
    "quantize": "models.commands.quantize:QuantizeCommand",
    "train": "models.commands.train:TrainCommand",
    "score": "models.commands.score:ScoreCommand",
    "export-c": "models.commands.export_c:ExportCommand",
    "add": "models.commands.store:AddCommand",
    "list": "models.commands.store:ListCommand",
    "remove": "models.commands.store:RemoveCommand",
    "pack": "models.commands.store:PackCommand",
}


class Command:
    """Dispatches to the subcommands."""

    summary = "make, judge and keep models: train, quantize, score, inspect, probe, export-c, add, list"
    example = "edge-runtime model train anomaly --data normal.csv --out pump-anomaly"

    def configure(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="model_command", metavar="COMMAND", required=True, title="commands")
        for name, target in SUBCOMMANDS.items():
            module, _, attribute = target.partition(":")
            command: CliCommand = getattr(import_module(module), attribute)()
            sub = commands.add_parser(
                name,
                help=command.summary,
                description=command.summary,
                epilog=f"example:\n  {command.example}",
                formatter_class=RawDescriptionHelpFormatter,
            )
            command.configure(sub)
            sub.set_defaults(model_subcommand=command)

    def run(self, args: Namespace) -> int:
        command: CliCommand = args.model_subcommand
        return command.run(args)
