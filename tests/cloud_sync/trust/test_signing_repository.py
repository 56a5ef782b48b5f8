"""The controller's repository: keys and their files, what may be approved, and a whole repository whenever the process dies."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata

from cloud_sync.controller.signing import KeyRing, Repository
from edge_runtime.errors import InputError, ModelRefused

ROOT = Path(__file__).resolve().parents[3]


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_keys_are_readable_by_their_owner_only(world) -> None:
    keys = sorted((world.folder / "keys").rglob("*.pem"))
    assert [path.name.rsplit("-", 1)[0] for path in keys] == ["root"] * 3 + ["targets", "director", "snapshot", "timestamp"]
    assert {_mode(path) for path in keys} == {0o600}
    assert {_mode(path) for path in (world.folder / "keys").iterdir()} == {0o700}


def test_a_key_that_others_can_read_is_not_used(world) -> None:
    (path,) = (world.folder / "keys/online").glob("director-*.pem")
    path.chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        world.sign()


def test_offline_keys_with_a_passphrase(make_world, tmp_path) -> None:
    folder = tmp_path / "vault"
    folder.mkdir()
    repository = Repository.create(folder, passphrase=b"correct horse")
    texts = [path.read_text() for path in (folder / "keys/offline").glob("*.pem")]
    assert len(texts) == 4
    assert all("ENCRYPTED" in text for text in texts)
    assert all("ENCRYPTED" not in path.read_text() for path in (folder / "keys/online").glob("*.pem"))
    with pytest.raises(InputError, match="give its passphrase"):
        repository.renew("targets", repository.offline_keys)
    with pytest.raises(InputError, match="passphrase is wrong"):
        repository.renew("targets", KeyRing(repository.offline_keys, b"battery"))
    repository.rotate("root", KeyRing(repository.offline_keys, b"correct horse"))
    assert all("ENCRYPTED" in path.read_text() for path in (folder / "keys/offline").glob("root-*.pem"))


def test_the_root_needs_two_of_three_and_the_director_is_a_delegation(world) -> None:
    root = Metadata.from_file(str(world.repository.trust_root)).signed
    assert (len(root.roles["root"].keyids), root.roles["root"].threshold, root.consistent_snapshot) == (3, 2, True)
    delegation = world.served_targets().signed.delegations.roles["director"]
    assert delegation.paths == ["gateways/*"]
    assert not set(delegation.keyids) & set(root.keys)


def test_a_second_repository_in_the_same_place_is_refused(world) -> None:
    with pytest.raises(InputError, match="has a repository already"):
        Repository.create(world.folder)


def test_no_repository_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match="controller init"):
        Repository.open(tmp_path)


def test_a_model_is_approved_once(world, tmp_path) -> None:
    before = world.repository.approved()
    assert [(found.model, found.version, found.digest) for found in before] == [("pump", 1, world.model)]
    again = world.repository.approve(world.repository.artifact(before[0].name), tmp_path / "no-keys-needed")
    assert (again,) == before == Repository.open(world.folder).approved()


def _tar(path: Path, *members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size, member.type = len(data), kind
            tar.addfile(member, io.BytesIO(data))
    return path


def test_what_is_no_bundle_is_not_approved(world, tmp_path) -> None:
    with tarfile.open(world.repository.artifact(world.repository.approved()[0].name)) as tar:
        manifest = tar.extractfile("manifest.json").read()
    good = ("manifest.json", manifest)
    hostile = [
        _tar(tmp_path / "swapped.tar", good, ("model.onnx", b"weighty")),
        _tar(tmp_path / "longer.tar", good, ("model.onnx", b"weights and more")),
        _tar(tmp_path / "missing.tar", good),
        _tar(tmp_path / "extra.tar", good, ("model.onnx", b"weights"), ("../../x", b"")),
        _tar(tmp_path / "twice.tar", good, ("model.onnx", b"weights"), ("model.onnx", b"weights")),
        _tar(tmp_path / "late.tar", ("model.onnx", b"weights"), good),
        _tar(tmp_path / "link.tar", good, ("model.onnx", b""), kind=tarfile.SYMTYPE),
        tmp_path / "absent.tar",
    ]
    (tmp_path / "noise.tar").write_bytes(os.urandom(4096))
    for path in [*hostile, tmp_path / "noise.tar"]:
        with pytest.raises(ModelRefused):
            world.repository.approve(path, world.repository.offline_keys)
    assert len(world.repository.approved()) == 1


@pytest.mark.parametrize("packed", [gzip.compress, lzma.compress, bz2.compress], ids=["gzip", "xz", "bzip2"])
def test_a_packed_bundle_is_not_unpacked(world, tmp_path, packed) -> None:
    whole = world.repository.artifact(world.repository.approved()[0].name).read_bytes()
    (tmp_path / "packed.tar").write_bytes(packed(whole + bytes(8 * 1024 * 1024)))
    with pytest.raises(ModelRefused):
        world.repository.approve(tmp_path / "packed.tar", world.repository.offline_keys)
    assert len(world.repository.approved()) == 1


def test_only_offline_signed_models_are_directed(world) -> None:
    with pytest.raises(InputError, match="approve it"):
        world.sign(models=["sha256:" + "ab" * 32])
    with pytest.raises(InputError, match="64 hex digits"):
        world.sign(models=["../../etc/passwd"])


@pytest.mark.parametrize(
    "name", ["tuf/../../keys/online/x.json", "tuf/1.mirrors.json", "models/x.tar", "/etc/passwd", "tuf/01.root.json", ""]
)
def test_a_blob_name_that_leads_elsewhere(world, name) -> None:
    with pytest.raises(InputError):
        world.repository.blob(name)


def test_a_blob_that_is_not_there(world) -> None:
    for name in ("tuf/9.root.json", f"models/{'0' * 64}.tar"):
        with pytest.raises(FileNotFoundError):
            world.repository.blob(name)


def test_the_snapshot_is_renewed_with_the_timestamp_when_half_its_time_is_over(world) -> None:
    before = world.repository.expiries()
    world.repository.refresh_timestamp()
    assert world.repository.expiries()["snapshot"] == before["snapshot"]
    world.wall.now_ns += 16 * 86_400 * 10**9
    world.repository.refresh_timestamp()
    after = world.repository.expiries()
    assert after["snapshot"] > before["snapshot"]
    assert after["timestamp"] == (world.wall.now_ns // 10**9 + 7 * 86_400) * 10**9
    assert set(after) == {"root", "targets", "snapshot", "timestamp"}


def test_another_process_sees_a_change_at_once(world) -> None:
    other = Repository.open(world.folder, clock=world.wall)
    world.sign(1)
    other.rotate("director", other.offline_keys)
    assert world.repository.next_revision(1) == 10**9 + 1
    world.sign(10**9 + 1)


def test_threads_sign_while_others_refresh(world) -> None:
    failures: list[Exception] = []

    def work(step) -> None:
        try:
            for number in range(15):
                step(number)
        except Exception as err:  # noqa: BLE001 -- looked at below
            failures.append(err)

    steps = [lambda number: world.sign(number + 1), lambda number: world.repository.refresh_timestamp()] * 2
    threads = [threading.Thread(target=work, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert world.served("timestamp.json").signed.version == 2 + 30


_DYING = """
import os, signal, sys
from pathlib import Path
from cloud_sync.controller.signing import Repository
steps, last = 0, int(sys.argv[3])
def hook(event, args):
    global steps
    if event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir") or event == "open" and sys.argv[1] in str(args[0]):
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)
folder = Path(sys.argv[1])
repository = Repository.open(folder, clock=lambda: int(sys.argv[4]))
sys.addaudithook(hook)
if sys.argv[2] == "approve":
    repository.approve(folder.parent / "second.tar", repository.offline_keys)
elif sys.argv[2] == "refresh":
    repository.refresh_timestamp()
else:
    repository.rotate(sys.argv[2].split("+"), repository.offline_keys)
"""


def _die(folder: Path, change: str, step: int, now_ns: int) -> bool:
    """Runs a change in a process that kills itself at the step; False when the change was over before."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", _DYING, str(folder), change, str(step), str(now_ns)], env=environment, capture_output=True, timeout=55
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize("change", ["refresh", "approve", "director+snapshot+timestamp", "root+targets"])
def test_a_controller_killed_at_any_step_leaves_a_whole_repository(world, child, second_tar, change) -> None:
    pristine = world.folder.with_name("pristine")
    shutil.copytree(world.folder, pristine)
    known = world.tmp / "known"
    assert child.ask(world.sign(1), trust_dir=known).desired is not None
    outcomes, step = set(), 1
    while True:
        shutil.rmtree(world.folder)
        shutil.copytree(pristine, world.folder)
        if not _die(world.folder, change, step, world.wall.now_ns):
            break
        world.repository = Repository.open(world.folder, clock=world.wall)
        before = (len(world.repository.approved()), world.served("timestamp.json").signed.version)
        revision = world.repository.next_revision(1)
        trust_dir = shutil.copytree(known, world.tmp / "trusts" / str(step), symlinks=True)
        assert child.ask(world.sign(revision), trust_dir=trust_dir).desired is not None, step
        world.repository.refresh_timestamp()
        world.repository.rotate(("timestamp", "director"), world.repository.offline_keys)
        assert child.ask(world.sign(world.repository.next_revision(revision)), trust_dir=trust_dir).desired is not None, step
        outcomes.add(before)
        step += 1
    assert step > 5
    assert len(outcomes) == 2  # the old state or the new one, never a third


def test_a_message_for_many_models_stays_within_the_wire(world) -> None:
    message = json.loads(world.sign())
    assert set(message) == {"v", "metadata", "document"}
    assert len(json.dumps(message)) < 2048
