"""Builds that npm fetches: pinned, only libraries kept, and nothing left of a failure."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import stat
import sys
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from ggufnorm.cli.main import cli
from ggufnorm.engines.llama import prebuilt
from ggufnorm.engines.llama.library import find_library
from ggufnorm.errors import ConfigError, EngineMissingError, InputError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")

FILES = {
    "package/bins/linux-x64/libllama.v0.5.0.so": b"llama",
    "package/bins/linux-x64/libggml-base.so": b"ggml",
    "package/bins/linux-x64/llama-addon.node": b"addon",
    "package/package.json": b"{}",
    "../../escaped.so": b"escaped",
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "made.tgz"
    with tarfile.open(path, "w:gz") as packed:
        for name, content in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("package/bins/linux-x64/liblink.so")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        packed.addfile(link)
    return path


@pytest.fixture
def cache(tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, npm's stand-in on PATH, and its archive pinned."""
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    package = prebuilt.Prebuilt("@some/package", "1.2.3", "v9", f"sha512-{digest}")
    monkeypatch.setattr(prebuilt, "PREBUILT", {("linux", "x86_64", "cpu"): package})
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setenv("GGUFNORM_CACHE", str(tmp_path / "cache"))
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\ncp {archive} "$4/some-package.tgz"\n')
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{npm.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "cache"


def test_a_build_is_fetched_once_by_name_and_only_its_libraries_are_kept(
    cache: Path, tmp_path: Path
) -> None:
    folder = prebuilt.get("cpu")

    assert prebuilt.get("cpu") == folder
    assert sorted(p.name for p in folder.iterdir()) == [
        "escaped.so", "libggml-base.so", "libllama.v0.5.0.so",
    ]  # fmt: skip
    assert (tmp_path / "said").read_text().startswith("pack @some/package@1.2.3 --pack-destination")
    assert len((tmp_path / "said").read_text().splitlines()) == 1
    assert find_library("cpu") == (folder / "libllama.v0.5.0.so").resolve()
    assert [p.name for p in folder.parent.iterdir()] == ["cpu-1.2.3"]


def test_another_archive_than_the_pinned_one_is_not_used(cache: Path, archive: Path) -> None:
    archive.write_bytes(archive.read_bytes() + b" ")

    with pytest.raises(InputError, match=r"another digest than the one that is pinned"):
        prebuilt.get("cpu")
    assert not list((cache / "engines").iterdir())


def test_a_failure_of_npm_is_told_in_its_words(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "bin" / "npm").write_text("#!/bin/sh\necho 'npm error 404 Not Found' >&2\nexit 1\n")

    with pytest.raises(InputError, match=r"npm cannot fetch @some/package@1\.2\.3: npm error 404"):
        prebuilt.get("cpu")


def test_without_npm_and_on_another_machine_it_says_what_to_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(ConfigError, match="no cpu build is pinned for linux on riscv64"):
        prebuilt.get("cpu")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="npm fetches @some/package, and it is not installed"):
        prebuilt.get("cpu")


def test_a_device_that_was_not_fetched_is_named_with_the_command(cache: Path) -> None:
    with pytest.raises(EngineMissingError, match="ggufnorm engine get cpu does that"):
        find_library("cpu")


def test_the_commands_get_list_and_remove(cache: Path) -> None:
    def run(*arguments: str) -> str:
        done = CliRunner().invoke(cli, ["engine", *arguments], standalone_mode=False)
        assert done.exception is None
        return done.output

    assert "none was fetched" in run("list")
    assert "cpu-1.2.3" in run("get", "cpu")
    assert "v9" in run("list")
    run("remove", "cpu")
    assert "none was fetched" in run("list")


def test_every_pin_is_a_whole_digest() -> None:
    for package in prebuilt.PREBUILT.values():
        assert len(base64.b64decode(package.integrity.removeprefix("sha512-"))) == 64
