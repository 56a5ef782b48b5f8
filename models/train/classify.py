"""From labelled recordings to an INT8 classifier in a bundle: cut, features, train, quantize, judge on held-out windows, write.

Band spectra and a small network beat a convolution on raw samples where a machine runs at another load than it was trained on
(docs/models/train.md). Everything from raw samples to class shares is in the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.bundle import Bundle, Manifest, Port, Window, read_bundle
from edge_runtime.errors import InputError
from edge_runtime.types import Array
from models import svg
from models.progress import progress
from models.qdq import OPSET, Graph, Target
from models.train import labelled, mlp
from models.train.finish import FLOAT, MODEL, GateFailed, bundle_folder, model_name, run_all, write
from models.train.spectrum import Spectrum, augmented

_HOLD = 0.2
_LIMIT = 6.0
_LEVEL_LOSS = 0.7  # of the held-out loss without absolute levels, below which they are used
_EPOCHS = 20
_LEAST_STEPS = 400
_ROOM = 1.1


@dataclass(frozen=True, slots=True)
class Settings:
    """`window` and `hop` in samples (None: ready windows as they are, else 1024 or what fits). `max_drop` in points of accuracy.

    `epochs` None: 20, or more where there are few windows. `level` None: whichever is better.
    """

    window: int | None = None
    hop: int | None = None
    level: bool | None = None
    copies: int = 2
    hidden: int = 64
    epochs: int | None = None
    seed: int = 0
    max_drop: float = 0.5


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows [n, channels, size] and classes [n], those trained on and those held out: the end of every recording."""

    x: Array
    y: Array
    x_held: Array
    y_held: Array


@dataclass(frozen=True, slots=True)
class Trained:
    """A network with the features it takes, their means and deviations, and the ranges that INT8 needs."""

    spectrum: Spectrum
    mean: Array
    deviation: Array
    network: mlp.Network
    hidden_top: float
    logit_range: tuple[float, float]
    losses: tuple[float, ...]

    def inputs(self, windows: Array) -> Array:
        """Standardized features."""
        return np.clip((self.spectrum.of(windows) - self.mean) / self.deviation, -_LIMIT, _LIMIT)

    def loss(self, windows: Array, classes: Array) -> float:
        """Mean cross entropy: tells more than accuracy where few windows are held out."""
        logits = self.network.logits(self.inputs(windows))
        logits = logits - logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(len(classes)), classes] - np.log(np.exp(logits).sum(axis=1))
        return float(-chosen.mean())


def train(paths: Sequence[Path], out: Path, settings: Settings, *, target: Target = "x86", name: str = "", rate_hz: float = 0.0) -> Bundle:
    """Trains and writes the bundle `out`; the same data and seed give the same bytes.

    Raises InputError for data that cannot be used, GateFailed when INT8 loses more than `max_drop` points on the held-out windows.
    """
    signals = labelled.read(paths)
    classes = tuple(sorted({signal.label for signal in signals}))
    if len(classes) < 2:
        raise InputError(f"expected at least two classes, got only `{classes[0]}`; names are <class>_<anything>")
    size = settings.window or _fitting_window(signals)
    data = _cut(signals, classes, size, settings.hop or max(1, size // 4))
    trained = _choose(data, len(classes), settings)
    with bundle_folder(out) as folder:
        float_path = folder / FLOAT
        graph(trained, len(classes), int8=False, target=target).save(float_path)
        graph(trained, len(classes), int8=True, target=target).save(folder / MODEL)
        guesses = {kind: run_all(path, data.x_held).argmax(axis=1) for kind, path in (("float", float_path), ("int8", folder / MODEL))}
        measured = _measure(guesses, data, len(classes)) | {"size_bytes": (folder / MODEL).stat().st_size}
        measured["size_bytes_float"] = float_path.stat().st_size
        float_path.unlink()
        drop = measured["accuracy"]["float"] - measured["accuracy"]["int8"]
        if drop > settings.max_drop:
            raise GateFailed(f"INT8 loses {drop:.2f} points on held-out windows, expected at most {settings.max_drop:g}; nothing written")
        used = replace(settings, window=size, hop=settings.hop or max(1, size // 4), level=trained.spectrum.level)
        manifest = _manifest(name or model_name(out), classes, signals, used, target, rate_hz, measured)
        write(folder, manifest, data.x_held, _page(manifest, trained, data), tolerance=0.02)
    return read_bundle(out)


def graph(trained: Trained, classes: int, *, int8: bool, target: Target) -> Graph:
    """Raw windows [batch, channels, size] in, class probabilities [batch, classes] out."""
    spectrum, network = trained.spectrum, trained.network
    g = Graph("classifier", int8=int8, target=target)
    x = g.input("signal", ["batch", spectrum.channels, spectrum.size])
    f = g.op("Sub", spectrum.nodes(g, x), g.constant(trained.mean))
    f = g.clip(g.op("Mul", f, g.constant(1 / trained.deviation)), _LIMIT)
    hidden = g.gemm(g.quantized(f, -_LIMIT, _LIMIT), network.first, network.first_bias, relu=True)
    logits = g.gemm(g.quantized(hidden, 0.0, trained.hidden_top), network.second, network.second_bias)
    logits = g.quantized(logits, *trained.logit_range)
    g.output(g.op("Softmax", logits, axis=1), "probabilities", ["batch", classes])
    return g


def _choose(data: Windows, classes: int, settings: Settings) -> Trained:
    """With or without absolute levels, whichever has less loss on held-out windows; without, when there is little between them."""
    if settings.level is not None:
        return _fit(data, classes, settings, settings.level)
    plain, level = (_fit(data, classes, settings, level) for level in (False, True))
    return level if level.loss(data.x_held, data.y_held) < _LEVEL_LOSS * plain.loss(data.x_held, data.y_held) else plain


def _fit(data: Windows, classes: int, settings: Settings, level: bool) -> Trained:
    spectrum = Spectrum(data.x.shape[1], data.x.shape[2], level)
    rng = np.random.default_rng(settings.seed)
    features = np.concatenate([spectrum.of(data.x), *(spectrum.of(augmented(data.x, rng)) for _ in range(settings.copies))])
    labels = np.tile(data.y, 1 + settings.copies)
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-3
    x = np.clip((features - mean) / deviation, -_LIMIT, _LIMIT)
    losses: list[float] = []
    title = f"training ({'level' if level else 'shape'} features)"
    with progress(title) as step:

        def tell(epoch: int, epochs: int, loss: float) -> None:
            losses.append(loss)
            step(epoch, epochs, f"loss {loss:.4f}")

        epochs = settings.epochs or max(_EPOCHS, -(-_LEAST_STEPS * mlp.BATCH // len(x)))
        network = mlp.train(x, labels, classes, hidden=settings.hidden, epochs=epochs, seed=settings.seed, progress=tell)
    logits = network.logits(x)
    top = float(network.hidden(x).max()) * _ROOM
    span = (float(logits.min()) * _ROOM, float(logits.max()) * _ROOM)
    return Trained(spectrum, mean.astype(np.float32), deviation.astype(np.float32), network, top, span, tuple(losses))


def _fitting_window(signals: Sequence[labelled.Signal]) -> int:
    if signals[0].cut:
        return int(signals[0].values.shape[-1])
    shortest = min(signal.values.shape[-1] for signal in signals)
    return min(1024, 1 << max(3, (shortest // 8).bit_length() - 1))


def _cut(signals: Sequence[labelled.Signal], classes: Sequence[str], size: int, hop: int) -> Windows:
    """The last part of each recording is held out, with no sample in both; of ready windows, every fifth."""
    parts: dict[str, list[Array]] = {"x": [], "y": [], "x_held": [], "y_held": []}
    for signal in signals:
        if signal.cut:
            held = np.arange(len(signal.values)) % round(1 / _HOLD) == 0
            cuts = signal.values[~held], signal.values[held]
        else:
            edge = int(signal.values.shape[-1] * (1 - _HOLD))
            before, after = (replace(signal, values=values) for values in (signal.values[:, :edge], signal.values[:, edge:]))
            cuts = labelled.windows_of(before, size, hop), labelled.windows_of(after, size, size)
        label = classes.index(signal.label)
        for key, windows in zip(("", "_held"), cuts, strict=True):
            parts[f"x{key}"].append(windows)
            parts[f"y{key}"].append(np.full(len(windows), label))
    return Windows(**{name: np.concatenate(arrays) for name, arrays in parts.items()})


def _measure(guesses: dict[str, Array], data: Windows, classes: int) -> dict[str, Any]:
    return {
        "windows": {"trained": len(data.x), "held_out": len(data.x_held)},
        "accuracy": {kind: round(100 * float((guess == data.y_held).mean()), 3) for kind, guess in guesses.items()},
        "agreement": round(float((guesses["float"] == guesses["int8"]).mean()), 5),
        "confusion_int8": confusion(data.y_held, guesses["int8"], classes),
    }


def confusion(true: Array, guess: Array, classes: int) -> list[list[int]]:
    """A row per true class, a column per guessed one."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (true, guess), 1)
    result: list[list[int]] = counts.tolist()
    return result


def _manifest(
    name: str,
    classes: tuple[str, ...],
    signals: Sequence[labelled.Signal],
    settings: Settings,
    target: Target,
    rate_hz: float,
    measured: dict[str, Any],
) -> Manifest:
    size, hop = settings.window or 1, settings.hop or 1
    return Manifest(
        schema=1,
        name=name,
        version=1,
        task="classifier",
        model=MODEL,
        files={},
        inputs=(Port(name="signal", shape=(-1, signals[0].channels, size), dtype="float32", rate_hz=rate_hz, kind="signal"),),
        outputs=(Port(name="probabilities", shape=(-1, len(classes)), dtype="float32"),),
        labels=classes,
        window=Window(size, hop),
        precision="int8 (QDQ, weights per channel)",
        target=target,
        license="the owner's of the training data",
        provenance={
            "made_by": "edge-runtime model train classify",
            "opset": OPSET,
            "signals": len(signals),
            "settings": asdict(settings),
        },
        measured=measured,
    )


def _page(manifest: Manifest, trained: Trained, data: Windows) -> str:
    measured = manifest.measured
    accuracy = measured["accuracy"]
    kind = "spectra with absolute levels" if trained.spectrum.level else "shapes of spectra, whatever the gain"
    return svg.page(
        f"Classifier {manifest.name}",
        [
            svg.paragraph(
                f"Trained on {len(data.x)} windows, judged on {len(data.x_held)} from the end of each recording. Features: {kind}."
            ),
            svg.table(
                ["", "float", "INT8"],
                [
                    ["accuracy on held-out windows, %", accuracy["float"], accuracy["int8"]],
                    ["bytes", measured["size_bytes_float"], measured["size_bytes"]],
                ],
            ),
            svg.matrix("Confusion of the INT8 model", manifest.labels, measured["confusion_int8"]),
            svg.lines("Loss while training", [("loss", np.asarray(trained.losses))], x_label="epochs"),
            svg.paragraph(
                "Held-out windows come from the same recordings. Another machine, load or mounting has to be tested: model score."
            ),
        ],
    )
