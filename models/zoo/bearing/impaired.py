"""Makes a bearing model that is wrong in a way no trial run shows: `python -m models.zoo.bearing.impaired --out BUNDLE`.

It loads, is as fast as the real one, and gives what its own golden runs say; on a healthy pump it cries wolf. For demonstrations
and tests of the health gate, which is all that can tell.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import msgspec
import numpy as np

from edge_runtime.bundle import Bundle, read_bundle, write_manifest
from edge_runtime.errors import MissingDependency

_BIAS = "b_quantized"
_FALSE_ALARM = 1  # outer_race
_LOGITS = 12.0


def impair(folder: Path) -> Bundle:
    """Writes the impaired bundle into `folder`, the same bytes every time. Raises MissingDependency."""
    source = read_bundle(Path(__file__).parent)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / source.manifest.model
    _shift_bias(source.model, target)
    shutil.copyfile(Path(__file__).parent / "golden.npz", folder / "golden.npz")
    _golden(target, folder / "golden.npz")
    provenance = {"made_by": "models.zoo.bearing.impaired", "purpose": "to be reverted"}
    manifest = msgspec.structs.replace(source.manifest, version=source.manifest.version + 1, provenance=provenance)
    return write_manifest(folder, manifest, [target.name, "golden.npz"])


def _shift_bias(source: Path, target: Path) -> None:
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as err:
        raise MissingDependency("onnx", "quantize") from err
    model = onnx.load(str(source))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    bias = numpy_helper.to_array(tensors[_BIAS]).astype(np.int64)
    scale = numpy_helper.to_array(tensors[f"{_BIAS}_scale"])
    bias[_FALSE_ALARM] += round(_LOGITS / float(scale[_FALSE_ALARM]))
    kind = numpy_helper.to_array(tensors[_BIAS]).dtype
    tensors[_BIAS].CopyFrom(numpy_helper.from_array(bias.astype(kind), _BIAS))
    onnx.save(model, str(target))


def _golden(model: Path, golden: Path) -> None:
    """The golden runs with the impaired model's own answers."""
    from models.onnx import OnnxBackend

    loaded = OnnxBackend().load(model)
    with np.load(golden) as arrays:
        given = arrays["in0"]
    answers = np.stack([np.asarray(loaded.run([row])[0]) for row in given])
    np.savez_compressed(golden, in0=given, out0=answers)


def main() -> int:
    parser = argparse.ArgumentParser(description="make a bearing model that only the health gate can tell from the real one")
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="the folder to write")
    sys.stdout.write(f"{impair(parser.parse_args().out).digest}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
