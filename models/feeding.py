"""Which file feeds which input: plain files for a model of one input, NAME=FILE for several. Reads none itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import overload

from edge_runtime.errors import InputError
from edge_runtime.types import Array, TensorInfo
from models import declared as by_manifest
from models import inputs as by_shape
from models.declared import Declared
from models.inputs import Options, Source


def sources(given: Sequence[Path], tensors: Sequence[TensorInfo], declared: Mapping[str, Declared], options: Options) -> Iterator[Source]:
    """Every source of the files, in their order: one is one sequence of runs. Raises InputError naming what is missing."""
    named = [_named(path, tensors) for path in given]
    if not any(name for name, _ in named):
        for path in given:
            yield from _read(path, tensors, declared, options)
        return
    files: dict[str, list[Path]] = {tensor.name: [] for tensor in tensors}
    for name, path in named:
        if name is None:
            raise InputError(f"--input {path}: expected NAME=FILE as for the others; the model's inputs: {', '.join(files)}")
        files[name].append(path)
    for number, paths in enumerate(zip_longest(*files.values())):
        missing = [name for name, path in zip(files, paths, strict=True) if path is None]
        if missing:
            raise InputError(
                f"--input: set {number + 1} has no file for input `{missing[0]}`; give {' '.join(f'{name}=FILE' for name in files)}"
            )
        yield _together([_only(path, tensor, declared, options) for path, tensor in zip(paths, tensors, strict=True)])


def _named(path: Path, tensors: Sequence[TensorInfo]) -> tuple[str | None, Path]:
    """`NAME=FILE` as name and file; a file that is really called so is a file."""
    text = str(path)
    fitting = [tensor.name for tensor in tensors if text.startswith(f"{tensor.name}=")]
    if fitting:
        name = max(fitting, key=len)
        return name, Path(text[len(name) + 1 :])
    if "=" in text and not path.exists():
        name = text.partition("=")[0]
        raise InputError(f"--input {text}: the model has no input `{name}` (it has: {', '.join(tensor.name for tensor in tensors)})")
    return None, path


def _read(path: Path, tensors: Sequence[TensorInfo], declared: Mapping[str, Declared], options: Options) -> Iterator[Source]:
    known = declared.get(tensors[0].name) if len(tensors) == 1 else None
    return by_shape.read(path, tensors, options) if known is None else by_manifest.read(path, known, options)


def _only(path: Path, tensor: TensorInfo, declared: Mapping[str, Declared], options: Options) -> Source:
    found = list(_read(path, (tensor,), declared, options))
    if len(found) != 1:
        raise InputError(f"{path}: holds {len(found)} recordings; expected one for input `{tensor.name}`")
    return found[0]


def _together(parts: Sequence[Source]) -> Source:
    """One run of each input together; an input with a single run is the same in all."""
    counts = {len(part.runs) for part in parts} - {1}
    if len(counts) > 1:
        raise InputError(f"{', '.join(f'{part.name} gives {len(part.runs)} runs' for part in parts)}; expected as many from each, or one")
    notes = [f"{part.name}: {part.note}" for part in parts if part.note]
    return Source("+".join(part.name for part in parts), Sets(parts, max(counts, default=1)), "; ".join(notes))


class Sets(Sequence[Sequence[Array]]):
    """The inputs of several sources run by run."""

    def __init__(self, parts: Sequence[Source], count: int) -> None:
        self._parts = parts
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Sequence[Array]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Sequence[Array]]: ...

    def __getitem__(self, index: int | slice) -> Sequence[Array] | Sequence[Sequence[Array]]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(self._count))]
        if not 0 <= index < self._count:
            raise IndexError(index)
        return [part.runs[index if len(part.runs) > 1 else 0][0] for part in self._parts]
