"""``doctor``, ``completion`` and ``--version``: what a bug report and a shell need."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ggufnorm import doctor
from ggufnorm.cli.main import cli
from ggufnorm.errors import EngineMissingError
from tests.servers import RangeServer, running, status


def found(monkeypatch: pytest.MonkeyPatch, hub: str) -> dict[str, doctor.Examination]:
    monkeypatch.setenv("HF_ENDPOINT", hub)
    return {e.what: e for e in doctor.examine()}


@pytest.mark.slow
def test_a_hub_out_of_reach_is_no_illness(monkeypatch: pytest.MonkeyPatch) -> None:
    server = RangeServer(files={"/": b""}, trouble=status(503))
    with running(server):
        refusing = found(monkeypatch, server.url)["Hugging Face Hub"]
    assert (refusing.state, "status 503" in refusing.found) == ("absent", True)
    gone = found(monkeypatch, "http://127.0.0.1:9")["Hugging Face Hub"]
    assert gone.state == "absent"
    assert "cannot reach" in gone.found


def test_what_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **_how: object) -> dict[str, object]:
        raise EngineMissingError("this needs llama.cpp: pip install …")

    monkeypatch.setattr(doctor.worker, "call", missing)
    examined = found(monkeypatch, "http://127.0.0.1:9")
    assert examined["llama.cpp"].state == "absent"
    assert "pip install" in examined["llama.cpp"].found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_us_back(shell: str) -> None:
    done = CliRunner().invoke(cli, ["completion", shell])
    assert done.exit_code == 0
    assert f"_GGUFNORM_COMPLETE={shell}_complete" in done.output


def test_bash_completes_a_command(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash
    script = tmp_path / "completion"
    script.write_text(CliRunner().invoke(cli, ["completion", "bash"]).output)
    call = f"""
ggufnorm() {{ {sys.executable} -c 'from ggufnorm.cli.main import main; main()'; }}
export -f ggufnorm
source {script}
COMP_WORDS=(ggufnorm insp); COMP_CWORD=1
response=$(COMP_WORDS="ggufnorm insp" COMP_CWORD=1 _GGUFNORM_COMPLETE=bash_complete ggufnorm)
echo "$response"
"""
    done = subprocess.run([bash, "-c", call], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "plain,inspect"
