"""The model store: whole bundles or none, nothing that is used is cleared away, hostile archives stay outside."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime.bundle import MANIFEST, Bundle, read_bundle
from edge_runtime.cli.main import main
from edge_runtime.config.deployment import ModelSpec
from edge_runtime.config.references import resolve_model
from edge_runtime.errors import InputError, ModelRefused, StoreFull
from models.archive import pack, unpack
from models.store import ModelStore
from models.zoo import path as zoo_path

ZOO = zoo_path("bearing").parent


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture
def version(tmp_path: Path) -> Callable[[int], Path]:
    """The zoo's bundle as another version."""

    def make(number: int) -> Path:
        folder = tmp_path / f"v{number}"
        folder.mkdir()
        for name in (MANIFEST, *read_bundle(ZOO).manifest.files):
            shutil.copy(ZOO / name, folder / name)
        text = (folder / MANIFEST).read_text()
        (folder / MANIFEST).write_text(text.replace('"version": 2', f'"version": {number}'))
        return folder

    return make


def test_what_goes_in_comes_out_by_its_digest(store: ModelStore, tmp_path: Path) -> None:
    bundle = store.install(ZOO)
    assert store.install(ZOO).digest == bundle.digest == read_bundle(ZOO).digest
    assert resolve_model(ModelSpec(digest=bundle.digest), tmp_path, store.root) == bundle.model
    assert [entry.name for entry in store.entries()] == ["bearing"]


def test_a_packed_bundle_is_the_same_bundle(store: ModelStore, tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        pack(read_bundle(ZOO), tmp_path / name)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert store.install(tmp_path / "a.tar").digest == read_bundle(ZOO).digest


def test_active_and_previous_stay_when_room_is_made(store: ModelStore, version: Callable[[int], Path]) -> None:
    digests = [store.install(version(number)).digest for number in range(3, 7)]
    for number, digest in enumerate(digests):
        os.utime(store.root / digest.removeprefix("sha256:"), (number, number))
        if number >= 2:
            store.use("bearing", digest)
    assert store.collect(0) == digests[:2]
    assert {entry.digest: entry.use for entry in store.entries()} == {digests[2]: "previous", digests[3]: "active"}
    assert store.revert("bearing") == digests[2]
    with pytest.raises(InputError, match="is the active model of `bearing`"):
        store.remove(digests[2])


def test_a_changed_file_is_not_taken_and_leaves_nothing(store: ModelStore, version: Callable[[int], Path]) -> None:
    folder = version(3)
    model = folder / read_bundle(folder).manifest.model
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelRefused, match="is not the file that the manifest lists"):
        store.install(folder)
    assert [path.name for path in store.root.iterdir()] == [".lock"]


def test_a_full_disk_leaves_nothing_half(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.install(ZOO)
    before = sorted(store.root.rglob("*"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        store.install(ZOO)
    assert sorted(store.root.rglob("*")) == before


def _archive(path: Path, change: Callable[[tarfile.TarFile, Bundle], None], *, manifest: bool = True) -> Path:
    bundle = read_bundle(ZOO)
    with tarfile.open(path, "w") as tar:
        if manifest:
            tar.add(ZOO / MANIFEST, MANIFEST)
        change(tar, bundle)
    return path


def _file(tar: tarfile.TarFile, name: str, content: bytes, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(content), kind, link
    tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda tar, bundle: _file(tar, "../escape", b"x"),
        lambda tar, bundle: _file(tar, "/tmp/escape", b"x"),
        lambda tar, bundle: _file(tar, bundle.manifest.model, b"", tarfile.SYMTYPE, "/etc/passwd"),
        lambda tar, bundle: _file(tar, bundle.manifest.model, b"", tarfile.LNKTYPE, MANIFEST),
        lambda tar, bundle: _file(tar, bundle.manifest.model, b"short"),
        lambda tar, bundle: _file(tar, "more.py", b"import os"),
        lambda tar, bundle: [tar.add(ZOO / bundle.manifest.model, bundle.manifest.model) for _ in range(2)],
        lambda tar, bundle: None,
        lambda tar, bundle: _file(tar, "pipe", b"", tarfile.FIFOTYPE),
    ],
    ids=["parent", "absolute", "symlink", "hardlink", "short", "unlisted", "twice", "incomplete", "pipe"],
)
def test_hostile_archives_stay_outside(change: Callable[[tarfile.TarFile, Bundle], None], store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="unreadable"):
        store.install(_archive(tmp_path / "hostile.tar", change))
    assert [path.name for path in store.root.iterdir()] == [".lock"]
    assert not (tmp_path / "escape").exists()
    assert not Path("/tmp/escape").exists()


def test_an_archive_cut_anywhere_is_refused(tmp_path: Path) -> None:
    pack(read_bundle(ZOO), tmp_path / "whole.tar")
    whole = (tmp_path / "whole.tar").read_bytes()
    content_end = len(whole.rstrip(b"\0"))
    for number in range(40):
        cut, into = tmp_path / "cut.tar", tmp_path / f"into{number}"
        cut.write_bytes(whole[: content_end * number // 40])
        into.mkdir()
        with pytest.raises(ModelRefused):
            unpack(cut, into)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    state = ["--state", str(tmp_path)]
    assert main(["model", "pack", str(ZOO), "--out", str(tmp_path / "b.tar")]) == 0
    assert main(["model", "list", *state]) == 0
    assert "no models" in capsys.readouterr().out
    assert main(["model", "add", str(tmp_path / "b.tar"), *state, "--json"]) == 0
    digest = json.loads(capsys.readouterr().out)["digest"]
    assert main(["model", "list", *state, "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["models"]
    assert (entry["digest"], entry["use"]) == (digest, "active")
    assert main(["model", "remove", digest, *state]) == 2
    assert "is the active model" in capsys.readouterr().err


def test_a_bundle_that_fails_its_probe_does_not_stay(
    tmp_path: Path, version: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    import numpy as np

    from edge_runtime.bundle import write_manifest

    folder = version(3)
    manifest = read_bundle(folder).manifest
    with np.load(folder / "golden.npz") as archive:
        arrays = {name: archive[name] + (1 if name == "out0" else 0) for name in archive.files}
    np.savez(folder / "golden.npz", **arrays)
    write_manifest(folder, manifest, list(manifest.files))
    assert main(["model", "add", str(folder), "--state", str(tmp_path)]) == 2
    assert "golden_mismatch" in capsys.readouterr().err
    assert ModelStore(tmp_path / "models").entries() == []


def test_a_bundle_that_does_not_fit_makes_room_or_is_refused(store: ModelStore, version: Callable[[int], Path]) -> None:
    first, second = (store.install(version(number)).digest for number in (3, 4))
    size = store.entries()[0].size_bytes
    os.utime(store.root / first.removeprefix("sha256:"), (1, 1))
    third = store.install(version(5), max_bytes=2 * size + 100).digest
    assert {entry.digest for entry in store.entries()} == {second, third}
    fourth = store.install(version(6), max_bytes=2 * size + 100, keep={second}).digest
    assert {entry.digest for entry in store.entries()} == {second, fourth}
    store.use("bearing", fourth)
    with pytest.raises(StoreFull, match=r"bearing takes \d+ bytes; the model store may hold \d+ and \d+ of them are in use\. Raise store"):
        store.install(version(7), max_bytes=2 * size + 100, keep={second})
    assert {entry.digest for entry in store.entries()} == {second, fourth}
    with pytest.raises(StoreFull):
        store.install(version(8), max_bytes=10)
    assert {entry.digest for entry in store.entries()} == {second, fourth}


def test_what_a_slot_names_is_kept_and_what_a_name_lets_go_is_not(store: ModelStore, version: Callable[[int], Path]) -> None:
    digests = [store.install(version(number)).digest for number in (3, 4, 5)]
    store.use("bearing", digests[0])
    store.use("bearing", digests[1])
    assert store.collect(0, keep={digests[2]}) == []
    store.release("bearing")
    store.release("nobody")
    assert set(store.collect(0, keep={digests[2]})) == set(digests[:2])
    assert store.has(digests[2])
    assert not store.has(digests[0])


def test_what_a_writer_that_died_left_behind_is_no_bundle_and_goes(store: ModelStore, version: Callable[[int], Path]) -> None:
    store.root.mkdir()
    left = store.root / ".new-abc"
    shutil.copytree(version(3), left)
    assert store.entries() == []
    store.install(version(4))
    assert not left.exists()
    assert [entry.version for entry in store.entries()] == [4]


def test_a_damaged_bundle_goes_first(store: ModelStore, version: Callable[[int], Path]) -> None:
    first, second = (store.install(version(number)).digest for number in (3, 4))
    os.utime(store.root / first.removeprefix("sha256:"), (1, 1))
    (store.root / second.removeprefix("sha256:") / MANIFEST).unlink()
    assert store.collect(store.entries()[0].size_bytes) == [second]


def test_writers_of_several_processes_take_turns(store: ModelStore, version: Callable[[int], Path]) -> None:
    digests = [store.install(version(number)).digest for number in (3, 4)]
    code = (
        "import sys; from pathlib import Path; from models.store import ModelStore; store = ModelStore(Path(sys.argv[1]))\n"
        "for number in range(100): store.use(f'{sys.argv[2]}-{number}', sys.argv[3 + number % 2])"
    )
    root = str(Path(__file__).resolve().parents[2])
    children = [subprocess.Popen([sys.executable, "-c", code, str(store.root), name, *digests], cwd=root) for name in ("a", "b", "c")]
    assert [child.wait(timeout=50) for child in children] == [0, 0, 0]
    for name in ("a", "b", "c"):
        for number in range(100):
            store.use(f"{name}-{number}", digests[number % 2])
            with pytest.raises(InputError, match="no previous model"):
                store.revert(f"{name}-{number}")
