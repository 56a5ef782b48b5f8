"""Makes what a guest boots: a kernel of Debian and an initramfs with Python and this checkout.

`python tests/guests/build.py raspi3|systemd OUT`. The first runs a script as its init, the second is a Debian with the gateway installed as
its documentation says. Packages come from where the machine that builds has its own. Needs apt-get and pip, no root; what was fetched once
is kept below OUT.
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
RELEASE = "bookworm"
SUITES = (RELEASE, f"{RELEASE}-updates", f"{RELEASE}-security")
PYTHON = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "zlib1g", "libexpat1", "libffi8", "libssl3"),
    *("libgcc-s1", "libstdc++6", "libcrypt1", "libbz2-1.0", "liblzma5", "libuuid1"),
)
WHEELS = ("numpy", "msgspec", "PyYAML", "paho-mqtt")
SOURCES = ("edge_runtime", "adapters")
DEBIAN = (
    *(
        "systemd",
        "systemd-sysv",
        "udev",
        "kmod",
        "i2c-tools",
        "bash",
        "coreutils",
        "util-linux",
        "mount",
        "libc-bin",
        "grep",
        "procps",
        "login",
    ),
    *("base-files", "base-passwd", "python3.11", "libstdc++6", "libgomp1"),
)
UNNEEDED = re.compile("linux-image|perl|debconf|dpkg|usrmerge|adduser|init-system-helpers")
DRIVERS = (
    *("i2c-stub", "i2c-dev", "i2c-smbus", "lm75", "ti-ads1015", "industrialio", "industrialio-triggered-buffer", "kfifo_buf"),
    *("softdog", "virtio_pci", "virtio_blk"),
)
QUIET = (
    *("serial-getty@ttyS0", "getty@tty1", "systemd-hwdb-update", "systemd-journal-catalog-update", "ldconfig", "systemd-firstboot"),
    *("systemd-update-utmp", "systemd-update-done", "systemd-pcrphase", "systemd-pcrphase-sysinit", "systemd-binfmt", "modprobe@"),
    *("systemd-random-seed", "systemd-timesyncd", "systemd-networkd", "systemd-resolved", "systemd-logind"),
)
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_27_x86_64", "manylinux_2_28_x86_64")
VENV, SITE = "opt/edge-runtime", "opt/edge-runtime/lib/python3.11/site-packages"
ENTRY = f"#!/{VENV}/bin/python\nimport sys\nfrom edge_runtime.cli.main import main\nsys.exit(main())\n"
UNITS = ROOT / "packaging/systemd"
GUEST = Path(__file__).with_name("systemd")


def sources(etc: Path = Path("/etc/apt")) -> dict[str, str]:
    """This machine's own sources of the release, for every architecture: file names to their content, in apt's two formats.

    Exits where it has none.
    """
    lists = [path for path in (etc / "sources.list", *sorted((etc / "sources.list.d").glob("*.list"))) if path.exists()]
    found = {path.name: _lines(path.read_text()) for path in lists}
    found |= {path.name: _stanzas(path.read_text()) for path in sorted((etc / "sources.list.d").glob("*.sources"))}
    kept = {name: content for name, content in found.items() if content}
    if not kept:
        sys.exit(f"expected a source of Debian {RELEASE} in {etc}, found none: add one, or build on a machine that has it")
    return kept


def _lines(text: str) -> str:
    kept = []
    for line in text.splitlines():
        match = re.fullmatch(r"\s*deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<where>\S+\s+(?P<suite>\S+)\s+\S.*)", line)
        if match and match["suite"] in SUITES:
            options = [option for option in (match["options"] or "").split() if not option.startswith("arch")]
            kept.append(f"deb [{' '.join(options)}] {match['where']}\n" if options else f"deb {match['where']}\n")
    return "".join(kept)


def _stanzas(text: str) -> str:
    kept = []
    for stanza in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n?", "", text)):
        fields = dict(re.findall(r"(?m)^([\w-]+):[ \t]*((?:.|\n[ \t])*)$", stanza))
        suites = [suite for suite in fields.get("Suites", "").split() if suite in SUITES]
        if suites and "deb" in fields["Types"].split() and fields.get("Enabled", "yes") != "no":
            ours = {name: value for name, value in fields.items() if name != "Architectures"} | {"Types": "deb", "Suites": " ".join(suites)}
            kept.append("".join(f"{name}: {value}\n" for name, value in ours.items()))
    return "\n".join(kept)


class Archive:
    """Debian's packages of one architecture, through an apt of our own."""

    def __init__(self, folder: Path, architecture: str) -> None:
        self.folder, self.architecture = folder.resolve(), architecture
        for name in ("apt/state/lists/partial", "apt/cache/archives/partial", "debs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "apt/status").touch()
        (self.folder / "apt/sources").mkdir(exist_ok=True)
        for name, content in sources().items():
            (self.folder / "apt/sources" / name).write_text(content)
        (self.folder / "apt/apt.conf").write_text(
            f'APT::Architecture "{architecture}"; APT::Architectures {{ "{architecture}"; }};\n'
            f'APT::Sandbox::User "root"; Dir::State "{self.folder}/apt/state"; Dir::State::status "{self.folder}/apt/status";\n'
            f'Dir::Cache "{self.folder}/apt/cache"; Dir::Etc::sourcelist "-"; Dir::Etc::sourceparts "{self.folder}/apt/sources";\n'
        )
        self._apt("apt-get", "-qq", "update")

    def kernel(self) -> str:
        """The name of the newest kernel package."""
        told = self._apt("apt-cache", "depends", f"linux-image-{self.architecture}")
        (name,) = re.findall(r"Depends: (linux-image-[0-9.-]+-\w+)$", told, re.MULTILINE)
        return str(name)

    def closure(self, packages: Sequence[str]) -> list[str]:
        """These packages and all that they need."""
        told = self._apt("apt-get", "-s", "-o", "APT::Install-Recommends=no", "install", *packages)
        return re.findall(r"^Inst (\S+)", told, re.MULTILINE)

    def unpack(self, packages: Sequence[str], into: Path) -> None:
        """The files of these packages; those that were fetched before are not fetched again."""
        debs = self.folder / "debs"
        missing = [package for package in packages if not list(debs.glob(f"{package}_*.deb"))]
        if missing:
            self._apt("apt-get", "-qq", "download", *missing, folder=debs)
        for package in packages:
            extract(next(debs.glob(f"{package}_*.deb")), into)

    def _apt(self, *command: str, folder: Path | None = None) -> str:
        environment = os.environ | {"APT_CONFIG": str(self.folder / "apt/apt.conf")}
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=folder or self.folder).stdout


def extract(package: Path, into: Path) -> None:
    """A package's files; a folder that is a link here (/lib to /usr/lib) stays one."""
    into.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as packed:
        subprocess.run(["tar", "-x", "-p", "--keep-directory-symlink", "-C", str(into)], stdin=packed.stdout, check=True)


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
    compile_all(image, site, image / "usr/lib/python3.11")


def write_initramfs(image: Path, target: Path, *, compressed: bool = True) -> None:
    """A folder as a cpio archive (newc), owned by root."""
    with gzip.open(target, "wb", compresslevel=1) if compressed else target.open("wb") as out:

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


def systemd(out: Path) -> None:
    """OUT/vmlinuz and OUT/initramfs of a Debian whose systemd runs our unit, and `systemd/checks.py` beside it."""
    archive = Archive(out, "amd64")
    system, base, image = out / "kernel", out / "base", out / "image"
    if not system.exists():
        archive.unpack([archive.kernel()], system)
    shutil.copy(next((system / "boot").glob("vmlinuz-*")), out / "vmlinuz")
    if not base.exists():
        debian(archive, out / "base.new")
        (out / "base.new").rename(base)
    shutil.rmtree(image, ignore_errors=True)
    shutil.copytree(base, image, symlinks=True)
    for name in DRIVERS:
        for found in system.glob(f"lib/modules/*/kernel/**/{name}.ko"):
            target = image / "usr" / found.relative_to(system)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(found, target)
    for name in ("modules.builtin", "modules.order"):
        for found in system.glob(f"lib/modules/*/{name}"):
            shutil.copy(found, image / "usr" / found.relative_to(system))
    add_gateway(out, image)
    shutil.copytree(GUEST / "image", image, dirs_exist_ok=True)
    write_initramfs(image, out / "initramfs", compressed=False)


def debian(archive: Archive, image: Path) -> None:
    """Unpacked, not configured: no package's scripts have run, so what they would have made is made here."""
    shutil.rmtree(image, ignore_errors=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (image / "usr" / name).mkdir(parents=True)
        (image / name).symlink_to(f"usr/{name}")
    archive.unpack([name for name in archive.closure(DEBIAN) if not UNNEEDED.search(name)], image)
    for unneeded in ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/i18n", "usr/lib/udev/hwdb.d"):
        shutil.rmtree(image / unneeded, ignore_errors=True)
    for name in ("passwd", "group"):
        shutil.copy(image / f"usr/share/base-passwd/{name}.master", image / "etc" / name)
    with (image / "etc/group").open("a") as groups:
        groups.write("i2c:x:117:\n")
    (image / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (image / "etc/hostname").write_text("gateway\n")
    (image / "etc/systemd/system").mkdir(parents=True, exist_ok=True)
    for name in QUIET:
        (image / "etc/systemd/system" / f"{name}.service").symlink_to("/dev/null")


def add_gateway(out: Path, image: Path) -> None:
    """As docs/how-to/run-as-a-service.md says: this checkout's wheel in a virtual environment, the unit file as it is, enabled."""
    pip = [sys.executable, "-m", "pip"]
    for old in out.glob("edge_runtime-*.whl"):
        old.unlink()
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), str(ROOT)], check=True)
    (wheel,) = out.glob("edge_runtime-*.whl")
    choice = ["--only-binary", ":all:", "--python-version", "3.11", *(word for platform in PLATFORMS for word in ("--platform", platform))]
    needed = out / "wheels"
    if not needed.exists():
        subprocess.run([*pip, "download", "-q", *choice, "-d", str(out / "wheels.new"), f"{wheel}[onnx]"], check=True)
        for ours in (out / "wheels.new").glob("edge_runtime-*.whl"):
            ours.unlink()
        (out / "wheels.new").rename(needed)
    install = [*pip, "install", "-q", "--no-deps", "--no-index", "--no-compile", *choice, "--target", str(image / SITE)]
    subprocess.run([*install, *map(str, sorted(needed.glob("*.whl"))), str(wheel)], check=True)
    programs = image / VENV / "bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to("/usr/bin/python3.11")
    (programs.parent / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.11\n")
    (programs / "edge-runtime").write_text(ENTRY)
    (programs / "edge-runtime").chmod(0o755)
    (image / "usr/bin/edge-runtime").symlink_to(f"/{VENV}/bin/edge-runtime")
    compile_all(image, image / SITE, image / "usr/lib/python3.11")
    wanted = image / "etc/systemd/system/multi-user.target.wants"
    wanted.mkdir(parents=True)
    shutil.copy(UNITS / "edge-runtime.service", image / "etc/systemd/system")
    for name in ("edge-runtime", "edge-checks"):
        (wanted / f"{name}.service").symlink_to(f"/etc/systemd/system/{name}.service")
    (image / "usr/lib/sysusers.d").mkdir(parents=True, exist_ok=True)
    shutil.copy(UNITS / "edge-runtime.sysusers", image / "usr/lib/sysusers.d/edge-runtime.conf")


def compile_all(image: Path, *folders: Path) -> None:
    """A guest that compiles anew at each start would take minutes."""
    options = ["--invalidation-mode", "unchecked-hash", "-s", str(image), "-p", "/"]
    command = [sys.executable, "-m", "compileall", "-q", *options, *map(str, folders)]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)


def modules(system: Path, names: Sequence[str], into: Path) -> None:
    """Modules of a kernel, decompressed, into one folder."""
    into.mkdir(parents=True, exist_ok=True)
    for name in names:
        found = next((system / "lib/modules").rglob(f"{name}.ko*"))
        content = found.read_bytes()
        (into / f"{name}.ko").write_bytes(lzma.decompress(content) if found.suffix == ".xz" else content)


if __name__ == "__main__":
    {"raspi3": raspi3, "systemd": systemd}[sys.argv[1]](Path(sys.argv[2]))
