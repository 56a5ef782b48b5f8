"""Makes what a guest boots: a kernel of Debian and an initramfs of Python, this checkout and a script as its init.

`python tests/guests/build.py raspi3|systemd OUT`. Needs apt-get and pip, no root; what was fetched once is kept below OUT.
"""

from __future__ import annotations

import gzip
import lzma
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
RELEASE = "bookworm"
PYTHON = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "zlib1g", "libexpat1", "libffi8", "libssl3"),
    *("libgcc-s1", "libstdc++6", "libcrypt1", "libbz2-1.0", "liblzma5", "libuuid1"),
)
WHEELS = ("numpy", "msgspec", "PyYAML", "paho-mqtt")
SOURCES = ("edge_runtime", "adapters")


class Archive:
    """Debian's packages of one architecture, through an apt of our own."""

    def __init__(self, folder: Path, architecture: str) -> None:
        self.folder, self.architecture = folder.resolve(), architecture
        for name in ("apt/state/lists/partial", "apt/cache/archives/partial", "debs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "apt/status").touch()
        (self.folder / "apt/sources.list").write_text(
            "".join(
                f"deb [signed-by={KEYRING}] http://deb.debian.org/{archive} {suite} main\n"
                for archive, suite in (("debian", RELEASE), ("debian-security", f"{RELEASE}-security"))
            )
        )
        (self.folder / "apt/apt.conf").write_text(
            f'APT::Architecture "{architecture}"; APT::Architectures {{ "{architecture}"; }};\n'
            f'APT::Sandbox::User "root"; Dir::State "{self.folder}/apt/state"; Dir::State::status "{self.folder}/apt/status";\n'
            f'Dir::Cache "{self.folder}/apt/cache"; Dir::Etc::sourcelist "{self.folder}/apt/sources.list"; Dir::Etc::sourceparts "-";\n'
        )
        self._apt("apt-get", "-qq", "update")

    def kernel(self) -> str:
        """The name of the newest kernel package."""
        told = self._apt("apt-cache", "depends", f"linux-image-{self.architecture}")
        (name,) = re.findall(r"Depends: (linux-image-[0-9.-]+-\w+)$", told, re.MULTILINE)
        return str(name)

    def unpack(self, packages: Sequence[str], into: Path) -> None:
        """The files of these packages; those that were fetched before are not fetched again."""
        debs = self.folder / "debs"
        missing = [package for package in packages if not list(debs.glob(f"{package}_*.deb"))]
        if missing:
            self._apt("apt-get", "-qq", "download", *missing, folder=debs)
        for package in packages:
            subprocess.run(["dpkg-deb", "--extract", str(next(debs.glob(f"{package}_*.deb"))), str(into)], check=True)

    def _apt(self, *command: str, folder: Path | None = None) -> str:
        environment = os.environ | {"APT_CONFIG": str(self.folder / "apt/apt.conf")}
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=folder or self.folder).stdout


def add_python(archive: Archive, image: Path, platforms: Sequence[str]) -> None:
    """Python, the wheels that the gateway needs, and this checkout, compiled."""
    archive.unpack(PYTHON, image)
    wheels = archive.folder / "wheels"
    if not wheels.exists():
        choice = [word for platform in platforms for word in ("--platform", platform)]
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--only-binary",
            ":all:",
            "--no-deps",
            "--python-version",
            "3.11",
            *choice,
        ]
        subprocess.run([*command, "-d", str(wheels), *WHEELS], check=True)
    site = image / "edge"
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as file:
            file.extractall(site)
    for source in SOURCES:
        shutil.copytree(ROOT / source, site / source, ignore=shutil.ignore_patterns("__pycache__", "firmware"))
    for unneeded in ("**/tests", "numpy/_core/include", "numpy/f2py"):
        for path in site.glob(unneeded):
            shutil.rmtree(path)
    folders = [str(site), str(image / "usr/lib/python3.11")]
    options = ["--invalidation-mode", "unchecked-hash", "-s", str(image), "-p", "/"]
    subprocess.run([sys.executable, "-m", "compileall", "-q", *options, *folders], check=False, stdout=subprocess.DEVNULL)


def write_initramfs(image: Path, target: Path) -> None:
    """A folder as a compressed cpio archive (newc), owned by root."""
    with gzip.open(target, "wb", compresslevel=1) as out:

        def put(name: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
            fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name) + 1, 0)
            header = "070701" + "".join(f"{field:08x}" for field in fields) + name + "\0"
            out.write(header.encode().ljust(-(-len(header) // 4) * 4, b"\0") + content.ljust(-(-len(content) // 4) * 4, b"\0"))

        put("dev", 0o040755, b"")
        put("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1))
        for path in sorted(image.rglob("*")):
            name, mode = str(path.relative_to(image)), path.lstat().st_mode
            if stat.S_ISLNK(mode):
                put(name, mode, str(path.readlink()).encode())
            elif stat.S_ISDIR(mode) or stat.S_ISREG(mode):
                put(name, mode, path.read_bytes() if stat.S_ISREG(mode) else b"")
        put("TRAILER!!!", 0, b"")


def raspi3(out: Path) -> None:
    """OUT/vmlinuz, OUT/board.dtb and OUT/initramfs of a Raspberry Pi 3 that runs `raspi3_init.py`."""
    archive = Archive(out, "arm64")
    system, image = out / "kernel", out / "image"
    if not system.exists():
        archive.unpack([archive.kernel()], system)
    shutil.copy(next((system / "boot").glob("vmlinuz-*")), out / "vmlinuz")
    shutil.copy(next(system.glob("usr/lib/linux-image-*/broadcom/bcm2837-rpi-3-b.dtb")), out / "board.dtb")
    shutil.rmtree(image, ignore_errors=True)
    modules(system, ("bcm2835_wdt", "bcm2835_thermal", "i2c-bcm2835", "i2c-dev"), image / "modules")
    add_python(archive, image, ("manylinux2014_aarch64", "manylinux_2_28_aarch64"))
    shutil.copy(Path(__file__).with_name("raspi3_init.py"), image / "init")
    (image / "init").chmod(0o755)
    write_initramfs(image, out / "initramfs")


def modules(system: Path, names: Sequence[str], into: Path) -> None:
    """Modules of a kernel, decompressed, into one folder."""
    into.mkdir(parents=True, exist_ok=True)
    for name in names:
        found = next((system / "lib/modules").rglob(f"{name}.ko*"))
        content = found.read_bytes()
        (into / f"{name}.ko").write_bytes(lzma.decompress(content) if found.suffix == ".xz" else content)


if __name__ == "__main__":
    {"raspi3": raspi3}[sys.argv[1]](Path(sys.argv[2]))
