"""`edge-runtime model export-c`: a quantized model as the blob that the sensor node runs, as C source, and what it costs there."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import InputError, ModelRefused
from models.commands.probe import refused

if TYPE_CHECKING:
    from models.export_c.export import Exported

_ROUNDINGS = ("half-even", "double", "litert")


class ExportCommand:
    """Exit 0, or 1 naming the operator that the node's firmware lacks, or 2 when the command is wrong."""

    summary = "an INT8 model for the microcontroller node: blob, C array, report"
    example = "edge-runtime model export-c zoo:digits --out build/digits"

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument("model", metavar="MODEL", help="a quantized .onnx or .tflite file, a bundle folder, or zoo:NAME")
        parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for NAME.ern, NAME.c and NAME.json")
        parser.add_argument("--rounding", choices=_ROUNDINGS, help="whose results it gives (default: half-even)")
        parser.add_argument("--name", default="", metavar="NAME", help="up to 16 ASCII characters (default: the bundle's or file's)")
        parser.add_argument("--version", type=int, metavar="N", help="the node takes only higher ones (default: the bundle's, or 1)")
        parser.add_argument("--key", type=Path, metavar="FILE", help="the node's key, 32 bytes or 64 hex digits (default: development)")
        parser.add_argument("--json", action="store_true", help="one JSON document")

    def run(self, args: Namespace) -> int:
        import msgspec

        from models.export_c.export import as_json

        try:
            exported = _export(args)
        except ModelRefused as err:
            return refused(args.model, err, as_json=args.json)
        files = _write(args.out, exported)
        if args.json:
            print(msgspec.json.encode({"model": args.model, "report": as_json(exported), "files": list(map(str, files))}).decode())
        else:
            print("\n".join(_lines(exported, files, args.key is None)))
        return 0


def _export(args: Namespace) -> Exported:
    from models.export_c.export import export, key_from
    from models.export_c.network import Rounding
    from models.infer import ZOO, locate

    model = locate(args.model) if args.model.startswith(ZOO) else Path(args.model)
    if args.version is not None and not 0 < args.version < 1 << 32:
        raise InputError(f"--version: expected a number from 1 to {(1 << 32) - 1}, got {args.version}")
    rounding = Rounding(args.rounding or Rounding.HALF_EVEN)
    return export(model, rounding=rounding, name=args.name, version=args.version, key=key_from(args.key))


def _write(folder: Path, exported: Exported) -> tuple[Path, Path, Path]:
    """The blob, its C source and the report; each is whole or not there."""
    import msgspec

    from models.export_c.export import as_json, c_array

    folder.mkdir(parents=True, exist_ok=True)
    stem = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in exported.report.name)
    contents = {
        folder / f"{stem}.ern": exported.data,
        folder / f"{stem}.c": c_array(exported).encode(),
        folder / f"{stem}.json": msgspec.json.format(msgspec.json.encode(as_json(exported)), indent=2),
    }
    for path, content in contents.items():
        part = path.with_name(path.name + ".part")
        part.write_bytes(content)
        part.replace(path)
    blob, source, report = contents
    return blob, source, report


def _lines(exported: Exported, files: tuple[Path, ...], development: bool) -> Iterator[str]:
    from models.export_c.report import lines

    yield from lines(exported.report)
    if development:
        yield "  key           the development key: a provisioned node refuses this blob; give --key FILE"
    yield f"written: {', '.join(map(str, files))}"
