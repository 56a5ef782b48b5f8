"""Recipe: trains the digits network in numpy, writes it in INT8 and measures it on images held out from the start.

`python -m models.zoo.digits.train --out DIR` (extra `train`: scikit-learn, for the images). The same data and seeds give the same bytes.
The network was chosen on another split (`--split 7`); which epoch is kept is decided on the part `validation`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.bundle import Bundle, Manifest, Port
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.types import Array
from models import svg
from models.onnx import OnnxBackend
from models.progress import progress
from models.qdq import OPSET
from models.train.classify import confusion
from models.train.finish import FLOAT, spread
from models.zoo import recipe
from models.zoo.digits import network
from models.zoo.digits.data import CLASSES, SIZE, Part, load, png, split

NAME = "digits-int8.onnx"
LABELS = tuple(str(digit) for digit in range(CLASSES))
SEEDS = {"split": 2026, "train": 0}
EPOCHS = 60
SAMPLES = "samples"
HELD_OUT = "held_out.npz"

_GOLDEN_RUNS = 8


def main(argv: list[str] | None = None) -> int:
    """The whole recipe; returns the exit code."""
    parser = recipe.parser("digits", __doc__, "one npz with x [n, 8, 8] of 0..16 and y [n] (default: scikit-learn's load_digits)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, metavar="N", help="default: %(default)s")
    parser.add_argument("--split", type=int, default=SEEDS["split"], metavar="SEED", help="draws what is held out (default: %(default)s)")
    parser.add_argument("--samples", action="store_true", help=f"also write DIR/{SAMPLES}: two held-out pictures a digit, and all of them")
    args = parser.parse_args(argv)
    try:
        parts = split(load(args.data), args.split)
        made = make(args.out, parts, args.epochs, args.split, timed=args.time)
    except EdgeRuntimeError as err:
        parser.error(str(err))
    if args.samples:
        write_samples(parts["test"], args.out / SAMPLES)
    if args.picture:
        matrix = made.manifest.measured["confusion_int8"]
        args.picture.write_text(svg.matrix("zoo:digits in INT8 on 360 held-out images", LABELS, matrix) + "\n")
    recipe.tell(made)
    return 0


def make(out: Path, parts: dict[str, Part], epochs: int, split_seed: int, *, timed: bool = False) -> Bundle:
    """Trains, writes both precisions, measures and writes the bundle `out`."""
    out.mkdir(parents=True, exist_ok=True)
    train, check, test = (parts[name] for name in ("train", "validation", "test"))
    with progress("training") as step:
        trained = network.train(
            train.inputs(), train.y, check.inputs(), check.y, classes=CLASSES, epochs=epochs, seed=SEEDS["train"], step=step
        )
    ranges = trained.ranges(train.inputs())
    with tempfile.TemporaryDirectory() as name:
        float_path = Path(name) / FLOAT
        network.graph(trained, ranges, int8=False).save(float_path)
        network.graph(trained, ranges, int8=True).save(out / NAME)
        guesses = {kind: predict(path, test.inputs()) for kind, path in (("float", float_path), ("int8", out / NAME))}
        measured = measure(guesses, test.y) | {"size_bytes_float": float_path.stat().st_size}
    golden = [row[None] for row in spread(test.inputs(), _GOLDEN_RUNS)]
    counts = {kind: len(part.y) for kind, part in parts.items()}
    return recipe.seal(out, _manifest(measured, counts, epochs, split_seed), golden, tolerance=0.05, timed=timed)


def predict(path: Path, x: Array) -> Array:
    """The digit of every input [n, 1, 8, 8]."""
    model = OnnxBackend().load(path)
    try:
        return np.array([int(np.argmax(model.run([row[None]])[0])) for row in x])
    finally:
        model.close()


def measure(guesses: dict[str, Array], y: Array) -> dict[str, Any]:
    """Accuracy, agreement of INT8 with float, and the confusion of INT8 (rows: true, columns: guessed)."""
    return {
        "test_images": len(y),
        "accuracy": {kind: round(float((guess == y).mean()), 4) for kind, guess in guesses.items()},
        "agreement": round(float((guesses["float"] == guesses["int8"]).mean()), 4),
        "confusion_int8": confusion(y, guesses["int8"], CLASSES),
    }


def write_samples(test: Part, folder: Path) -> None:
    """The first two held-out pictures of every digit as `<digit>-<number>.png`, right or wrong, and all of them with their digits."""
    folder.mkdir(parents=True, exist_ok=True)
    for digit in range(CLASSES):
        for number, row in enumerate(np.flatnonzero(test.y == digit)[:2], 1):
            (folder / f"{digit}-{number}.png").write_bytes(png(test.x[row]))
    np.savez_compressed(folder / HELD_OUT, x=test.x, y=test.y.astype(np.uint8))


def _manifest(measured: dict[str, Any], counts: dict[str, int], epochs: int, split_seed: int) -> Manifest:
    image = Port(
        name="image", shape=(1, 1, SIZE, SIZE), dtype="float32", kind="image", channels=("grey",), mean=(0.0,), std=(255.0,), resize="pad"
    )
    return Manifest(
        schema=1,
        name="digits",
        version=1,
        task="classifier",
        model=NAME,
        files={},
        inputs=(image,),
        outputs=(Port(name="probabilities", shape=(1, CLASSES), dtype="float32"),),
        labels=LABELS,
        precision="int8 (QDQ, uint8 activations, int8 weights per channel)",
        license="Apache-2.0; trained on data under CC BY 4.0, see MODEL_CARD.md",
        provenance={
            "recipe": "models/zoo/digits/train.py",
            "command": "python -m models.zoo.digits.train --out DIR",
            "data": "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998: "
            "its test part, as scikit-learn's load_digits gives it",
            "data_license": "CC BY 4.0",
            "seeds": SEEDS | {"split": split_seed},
            "epochs": epochs,
            "images": counts,
            "opset": OPSET,
        },
        measured=measured,
    )


if __name__ == "__main__":
    sys.exit(main())
