"""Builds of llama.cpp that need no compiler: packages of the npm client, pinned by digest.

A package is fetched with ``npm pack``, by name; nothing of it is run, and only its shared libraries
are kept. They are of the release that llama-cpp-python binds.
"""

from __future__ import annotations

import base64
import hashlib
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ggufnorm.errors import ConfigError, InputError, OutputError
from ggufnorm.formats.llama_libraries import cache_folder
from ggufnorm.formats.output import temporary_folder

_SECONDS = 600
_PART = 1 << 20


@dataclass(frozen=True)
class Prebuilt:
    """A package with shared libraries.

    Attributes:
        package: npm's name of it.
        version: the one that is pinned.
        llama_cpp: the release of llama.cpp in it.
        integrity: SHA-512 of the archive, as npm writes it.
    """

    package: str
    version: str
    llama_cpp: str
    integrity: str


PREBUILT: dict[tuple[str, str, str], Prebuilt] = {
    ("linux", "x86_64", "cpu"): Prebuilt(
        "@node-llama-cpp/linux-x64", "3.22.1", "v0.5.0",
        "sha512-5uCCDNqWCNfaAm8aR/Uzxbo4HBpKgNF91kCHPepKhgMgV2OAmatoefbOlMihsqCiH2Od35E/eUHQCFbf"
        "RBJuOg==",
    ),
    ("linux", "x86_64", "vulkan"): Prebuilt(
        "@node-llama-cpp/linux-x64-vulkan", "3.22.1", "v0.5.0",
        "sha512-bBxqU+JOcBu1nb5Qj2zcMci+JByT1E8EajHvYodyNfVIPkEhXh+/HMwR1/BT7xP08YK0hks+kM8fglER"
        "0P8JEg==",
    ),
    ("linux", "x86_64", "cuda"): Prebuilt(
        "@node-llama-cpp/linux-x64-cuda", "3.22.1", "v0.5.0",
        "sha512-8rQCjyNNLZJUFit+YpjwlC4hwkKgOMIkB2wuycKBf8NU2O3ySKbiWZQ8aw9ku2nUTXjSnUIrE6KB88it"
        "duTBuA==",
    ),
    ("linux", "aarch64", "cpu"): Prebuilt(
        "@node-llama-cpp/linux-arm64", "3.22.1", "v0.5.0",
        "sha512-W+7naKCXX9/eEjjFmRS8vvx91QyLXDbeFxexZc3bh/PtQABZgmRL3C0AtYYXn4YGTj/3Qor4lWZn2tpj"
        "ZFPLdQ==",
    ),
}  # fmt: skip
"""By system, machine and device."""

DEVICES = tuple(dict.fromkeys(device for _system, _machine, device in PREBUILT))


def prebuilt(device: str) -> Prebuilt:
    """The package for this machine.

    Raises:
        ConfigError: there is none that was tried.
    """
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    found = PREBUILT.get((system, machine, device))
    if found is None:
        here = sorted(d for s, m, d in PREBUILT if (s, m) == (system, machine))
        tried = f"there are {', '.join(here)}" if here else "build llama.cpp, and use --llama-cpp"
        raise ConfigError(f"no {device} build is pinned for {system} on {machine}: {tried}")
    return found


def folder_of(device: str) -> Path:
    """Where the fetched build of a device is, or would be."""
    return cache_folder() / "engines" / f"{device}-{prebuilt(device).version}"


def installed() -> Iterator[tuple[str, Path]]:
    """The fetched builds: device and folder."""
    for device in DEVICES:
        try:
            folder = folder_of(device)
        except ConfigError:
            continue
        if folder.is_dir():
            yield device, folder


def get(device: str) -> Path:
    """Fetch a build, unless it is there already.

    Returns:
        Its folder, for ``--llama-cpp``; ``--llama-cpp DEVICE`` does too.

    Raises:
        ConfigError: there is no such build for this machine, or npm is not installed.
        InputError: it cannot be fetched, or is not the one that is pinned.
        OutputError: the cache cannot be written.
    """
    package, folder = prebuilt(device), folder_of(device)
    if folder.is_dir():
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError(
            f"npm fetches {package.package}, and it is not installed: install Node.js, or build"
            " llama.cpp and use --llama-cpp"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder.parent) as work:
            archive = _packed(npm, package, work)
            _extract(archive, work / "libraries")
            (work / "libraries").replace(folder)
    except OSError as error:
        raise OutputError(f"cannot write to {folder.parent}: {error.strerror}") from None
    return folder


def remove(device: str) -> bool:
    """Delete a fetched build; False if there was none.

    Raises:
        ConfigError: there is no such build for this machine.
        OutputError: it cannot be deleted.
    """
    folder = folder_of(device)
    if not folder.is_dir():
        return False
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise OutputError(f"cannot delete {folder}: {error.strerror}") from None
    return True


def _packed(npm: str, package: Prebuilt, work: Path) -> Path:
    """The archive, which has the digest that is pinned."""
    wanted = f"{package.package}@{package.version}"
    command = [npm, "pack", wanted, "--pack-destination", str(work), "--ignore-scripts", "--silent"]
    try:
        done = subprocess.run(
            command, cwd=work, capture_output=True, text=True, check=False, timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise InputError(f"npm took more than {_SECONDS} s to fetch {wanted}") from None
    archives = list(work.glob("*.tgz"))
    if done.returncode != 0 or len(archives) != 1:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[0]
        raise InputError(f"npm cannot fetch {wanted}: {said}")
    found = hashlib.sha512()
    with archives[0].open("rb") as file:
        while part := file.read(_PART):
            found.update(part)
    if f"sha512-{base64.b64encode(found.digest()).decode()}" != package.integrity:
        raise InputError(f"{wanted} has another digest than the one that is pinned: not used")
    return archives[0]


def _extract(archive: Path, target: Path) -> None:
    """Write the shared libraries of an archive into one folder, and nothing else."""
    target.mkdir()
    with tarfile.open(archive) as packed:
        for member in packed:
            name = PurePosixPath(member.name).name
            is_library = any(part in name for part in (".so", ".dylib", ".dll"))
            content = packed.extractfile(member) if member.isfile() and is_library else None
            if content is not None:
                with (target / name).open("xb") as file:
                    shutil.copyfileobj(content, file, _PART)
