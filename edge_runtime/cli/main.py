"""The command `edge-runtime`: finds its subcommands by entry point and turns errors into exit codes.

0 done, 1 the operation failed, 2 invalid input or usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from edge_runtime import __version__
from edge_runtime.errors import EdgeRuntimeError, InputError
from edge_runtime.ports import CliCommand
from edge_runtime.registry import COMMANDS, load, names


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    known = names(COMMANDS)
    wanted = next((word for word in argv if not word.startswith("-")), "")
    try:
        commands = {wanted: load(COMMANDS, wanted)()} if wanted in known else _all_commands(known)
        parser = _parser(commands)
        args = parser.parse_args(argv)
        if not hasattr(args, "command"):
            parser.print_help()
            return 2
        command: CliCommand = args.command
        return command.run(args)
    except InputError as err:
        return _fail(err, 2)
    except BrokenPipeError:  # `edge-runtime ... | head`: enough was read
        return 0
    except (EdgeRuntimeError, OSError) as err:
        return _fail(err, 1)
    except KeyboardInterrupt:
        return 130
    finally:
        _flush()


def _all_commands(known: Sequence[str]) -> dict[str, CliCommand]:
    """Every command that can be imported: a broken one of another package must not take the help of the others along."""
    commands: dict[str, CliCommand] = {}
    for name in known:
        try:
            commands[name] = load(COMMANDS, name)()
        except ImportError as err:
            print(f"edge-runtime: the command `{name}` is not available: {err}", file=sys.stderr)
    return commands


def _parser(commands: dict[str, CliCommand]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-runtime", description="Local INT8 inference, rules and actuation that keep working when the network does not."
    )
    parser.add_argument("--version", action="version", version=f"edge-runtime {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name, command in commands.items():
        sub = subparsers.add_parser(
            name,
            help=command.summary,
            description=command.summary,
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.configure(sub)
        sub.set_defaults(command=command)
    return parser


def _fail(err: Exception, code: int) -> int:
    print(err if isinstance(err, InputError) else f"edge-runtime: {err}", file=sys.stderr)
    return code


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
