"""Recipe: an INT8 classifier of activities from a smartwatch's motion, trained and tested on the official parts of BasicMotions.

`python -m models.zoo.activity.train --data BasicMotions_TRAIN.ts BasicMotions_TEST.ts --out DIR` (extra `quantize`). No torch: band spectra
and a small network, as `model train classify` uses them. The same files and seed give the same bytes.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.bundle import Bundle, Manifest, Port, Window
from edge_runtime.errors import EdgeRuntimeError, InputError
from edge_runtime.types import Array
from models import svg
from models.progress import progress
from models.qdq import OPSET
from models.train import mlp
from models.train.classify import Trained, confusion, graph
from models.train.finish import FLOAT, run_all, spread
from models.train.spectrum import Spectrum, augmented
from models.zoo import recipe
from models.zoo.activity.data import CHANNELS, RATE_HZ, Windows, read

NAME = "activity-int8.onnx"
SEED = 0
EPOCHS = 400
HIDDEN = 32
COPIES = 4

_LIMIT = 6.0
_ROOM = 1.1
_GOLDEN_RUNS = 8


def main(argv: list[str] | None = None) -> int:
    """The whole recipe; returns the exit code."""
    parser = recipe.parser("activity", __doc__, "BasicMotions_TRAIN.ts and BasicMotions_TEST.ts of the UEA archive, in this order")
    parser.add_argument("--epochs", type=int, default=EPOCHS, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=SEED, metavar="N", help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        if len(args.data) != 2:
            raise InputError(f"--data: expected the files TRAIN and TEST, got {len(args.data)}; the recipe brings no data")
        made = make(args.out, read(args.data[0]), read(args.data[1]), epochs=args.epochs, seed=args.seed, timed=args.time)
    except EdgeRuntimeError as err:
        parser.error(str(err))
    if args.picture:
        manifest = made.manifest
        args.picture.write_text(svg.matrix("activity in INT8, test part", manifest.labels, manifest.measured["confusion_int8"]) + "\n")
    recipe.tell(made)
    return 0


def make(out: Path, given: Windows, test: Windows, *, epochs: int = EPOCHS, seed: int = SEED, timed: bool = False) -> Bundle:
    """Trains on one part, measures on the other and writes the bundle `out`. Raises InputError when the parts do not fit together."""
    labels = tuple(sorted(set(given.names)))
    if given.x.shape[1:] != test.x.shape[1:] or not set(test.names) <= set(labels):
        raise InputError(f"expected test windows of {list(given.x.shape[1:])} and of the classes {', '.join(labels)}")
    out.mkdir(parents=True, exist_ok=True)
    trained = fit(given.x, given.classes(labels), len(labels), epochs, seed)
    truth = test.classes(labels)
    with tempfile.TemporaryDirectory() as name:
        float_path = Path(name) / FLOAT
        graph(trained, len(labels), int8=False, target="x86").save(float_path)
        graph(trained, len(labels), int8=True, target="x86").save(out / NAME)
        guesses = {kind: run_all(path, test.x).argmax(axis=1) for kind, path in (("float", float_path), ("int8", out / NAME))}
        measured: dict[str, Any] = {
            "windows": {"train": len(given.x), "test": len(test.x)},
            "accuracy": {kind: round(float((guess == truth).mean()), 4) for kind, guess in guesses.items()},
            "agreement": round(float((guesses["float"] == guesses["int8"]).mean()), 4),
            "confusion_int8": confusion(truth, guesses["int8"], len(labels)),
            "size_bytes_float": float_path.stat().st_size,
        }
    golden = [row[None] for row in spread(test.x, _GOLDEN_RUNS)]
    return recipe.seal(out, _manifest(labels, given.x.shape[2], measured, epochs, seed), golden, tolerance=0.05, timed=timed)


def fit(x: Array, y: Array, classes: int, epochs: int, seed: int) -> Trained:
    """Spectra with absolute levels, for gravity tells how the wrist is held, of the windows and of copies with other gain and noise."""
    spectrum = Spectrum(x.shape[1], x.shape[2], level=True)
    rng = np.random.default_rng(seed)
    features = np.concatenate([spectrum.of(x), *(spectrum.of(augmented(x, rng)) for _ in range(COPIES))])
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-3
    inputs = np.clip((features - mean) / deviation, -_LIMIT, _LIMIT)
    losses: list[float] = []
    with progress("training") as step:

        def tell(epoch: int, total: int, loss: float) -> None:
            losses.append(loss)
            step(epoch, total, f"loss {loss:.4f}")

        labels = np.tile(y, 1 + COPIES)
        network = mlp.train(inputs, labels, classes, hidden=HIDDEN, epochs=epochs, seed=seed, progress=tell)
    logits = network.logits(inputs)
    return Trained(
        spectrum,
        mean.astype(np.float32),
        deviation.astype(np.float32),
        network,
        float(network.hidden(inputs).max()) * _ROOM,
        (float(logits.min()) * _ROOM, float(logits.max()) * _ROOM),
        tuple(losses),
    )


def _manifest(labels: tuple[str, ...], size: int, measured: dict[str, Any], epochs: int, seed: int) -> Manifest:
    return Manifest(
        schema=1,
        name="activity",
        version=1,
        task="classifier",
        model=NAME,
        files={},
        inputs=(Port(name="signal", shape=(-1, len(CHANNELS), size), dtype="float32", channels=CHANNELS, rate_hz=RATE_HZ, kind="signal"),),
        outputs=(Port(name="probabilities", shape=(-1, len(labels)), dtype="float32"),),
        labels=labels,
        window=Window(size, max(1, size // 4)),
        precision="int8 (QDQ, uint8 activations, int8 weights per channel)",
        license="yours to settle with the owners of the data: the golden runs hold windows of it, see MODEL_CARD.md",
        provenance={
            "recipe": "models/zoo/activity/train.py",
            "command": "python -m models.zoo.activity.train --data BasicMotions_TRAIN.ts BasicMotions_TEST.ts --out DIR",
            "data": "BasicMotions, UEA multivariate time series classification archive (2018)",
            "data_license": "none stated by the archive",
            "seeds": {"train": seed},
            "epochs": epochs,
            "opset": OPSET,
        },
        measured=measured,
    )


if __name__ == "__main__":
    sys.exit(main())
