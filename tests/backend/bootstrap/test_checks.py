"""Each thing that can stop the set-up says what it is and how to mend it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from backend.bootstrap import checks, environments
from backend.bootstrap.checks import SetupError, explain_failure
from backend.bootstrap.running import run_visibly

pytestmark = pytest.mark.service

ROOT = environments.ROOT


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 4), (3, 14, 0), (4, 0, 0)])
def test_new_enough_pythons_pass(version):
    checks.check_python(version)


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 8, 1), (3, 10, 13)])
def test_an_old_python_is_named_with_the_fix(version):
    with pytest.raises(SetupError, match=r"this is Python {}.*PYTHON=python3\.11".format(".".join(map(str, version)))):
        checks.check_python(version)


def test_a_full_disk_is_told_before_anything_is_downloaded(tmp_path):
    with pytest.raises(SetupError, match=r"GiB free and \d{7}\.0 GiB are needed"):
        checks.check_disk(tmp_path, installed_gib=1_000_000, download_gib=1_000_000)
    checks.check_disk(tmp_path, installed_gib=0, download_gib=0)


def test_a_missing_compiler_is_named_with_the_fix(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SetupError, match=r"no C compiler was found, and numpy has to be compiled: .*build-essential"):
        checks.check_compiler("numpy has to be compiled")
    monkeypatch.setenv("CC", "/opt/cc")
    checks.check_compiler("numpy has to be compiled")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        # pip reports an unreachable registry as a missing version: the network has to win
        (
            "WARNING: NewConnectionError(...)\nERROR: No matching distribution found for torch==2.15.0",
            "registry could not be reached",
        ),
        ("ERROR: No matching distribution found for torch==2.15.0", "lacks one of the locked versions"),
        ("error: error sending request for url\n  Caused by: tcp connect error", "registry could not be reached"),
        ("  × No solution found when resolving dependencies", "lacks one of the locked versions"),
        ("error: command '/usr/bin/gcc' failed with exit code 1", "build-essential"),
        ("error: [Errno 13] Permission denied: '/opt/x'", "not writable"),
        ("first\nsecond\nsomething nobody has seen", "something nobody has seen"),
    ],
)
def test_failures_of_pip_and_uv_are_explained(output, expected):
    assert expected in explain_failure(output)


def test_an_unreachable_registry_is_recognised_in_what_pip_really_prints(tmp_path):
    command = [sys.executable, "-m", "pip", "download", "--isolated", "--no-deps", "--retries", "0", "--timeout", "2"]
    nowhere = ["--index-url", "http://127.0.0.1:9/simple", "--dest", str(tmp_path), "no-such-package==1.0"]
    status, output = run_visibly(command + nowhere, title="reaching", log=tmp_path / "log")
    assert status != 0
    assert "registry could not be reached" in explain_failure(output)
    assert output in (tmp_path / "log").read_text()


def test_no_browser_names_the_command_to_type(monkeypatch):
    monkeypatch.delenv("CHROMIUM_PATH", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    hint = environments.prepare_browser()
    assert hint is not None
    assert "sudo apt-get install chromium" in hint


def test_a_wrong_browser_path_is_an_error(monkeypatch):
    monkeypatch.setenv("CHROMIUM_PATH", "/nonexistent/chromium")
    with pytest.raises(SetupError, match="/nonexistent/chromium"):
        environments.prepare_browser()


def test_a_finished_environment_is_recognised_and_a_changed_lock_is_noticed(tmp_path, monkeypatch):
    locks = tmp_path / "requirements"
    locks.mkdir()
    (locks / "dev.txt").write_text("torch==2.15.0\n")
    monkeypatch.setattr(environments, "REQUIREMENTS", locks)
    environment = environments.Environment("dev", tmp_path / "venv", 0, 0)
    assert not environment.is_ready()
    environment.python.parent.mkdir(parents=True)
    environment.python.symlink_to(sys.executable)
    environment.stamp.write_text(environment.digest())
    assert environment.is_ready()
    environments.prepare(environment)  # nothing to do: runs no pip, makes no venv
    (locks / "dev.txt").write_text("torch==2.16.0\n")
    assert not environment.is_ready()


def test_uv_is_the_locked_one_and_reads_what_pip_was_told(monkeypatch):
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://127.0.0.1:9/a http://127.0.0.1:9/b")
    monkeypatch.setenv("UV_FIND_LINKS", "/mine")
    monkeypatch.setenv("PIP_FIND_LINKS", "/pips")
    variables = environments.uv_variables(Path(sys.executable))
    assert variables["UV_INDEX"] == "http://127.0.0.1:9/a http://127.0.0.1:9/b"
    assert "UV_FIND_LINKS" not in variables
    assert environments.UV in _pins(environments.REQUIREMENTS / "dev.txt")


@pytest.mark.parametrize("is_there", [True, False])
def test_torch_s_cpu_build_is_tried_first_and_the_lock_follows(tmp_path, monkeypatch, is_there):
    """Without a GPU; the registry may not have that build."""
    commands = []

    def run(command, *, title, log, environment=None):
        commands.append((command, environment or {}))
        return (0 if is_there or "cpu" not in title.lower() else 1), ""

    monkeypatch.setattr(environments, "run_visibly", run)
    monkeypatch.setattr(environments, "is_without_gpu", lambda: True)
    environment = environments.Environment("app", tmp_path / "venv", 0, 0)
    environment.python.parent.mkdir(parents=True)
    environment.python.symlink_to(sys.executable)
    environments.prepare(environment)
    installs = [(command[-1], given) for command, given in commands if "-r" in command and "--target" not in command]
    requirements = environment.folder / "cpu-requirements.txt"
    assert installs[0][0] == str(requirements)
    assert installs[0][1]["UV_TORCH_BACKEND"] == "cpu"
    assert [name for name, _ in installs[1:]] == ([] if is_there else [str(environment.lock)])
    assert "torch==" in requirements.read_text()
    assert "nvidia" not in requirements.read_text()
    assert environment.stamp.is_file()


def test_the_locks_agree_and_name_no_registry():
    app, dev = (_pins(environments.REQUIREMENTS / name) for name in ("app.txt", "dev.txt"))
    assert app <= dev, "dev.txt must contain app.txt: run `make lock`"
    for lock in environments.REQUIREMENTS.glob("*.txt"):
        assert "://" not in lock.read_text(), f"{lock.name} names a host"
    assert not any(pin.startswith("torch==2.13.0") for pin in dev)


def _pins(lock: Path) -> set[str]:
    return {line.strip() for line in lock.read_text().splitlines() if line.strip() and not line.startswith("#")}


def test_the_command_explains_itself_without_anything_installed():
    command = [sys.executable, "-I", "-S", "-c", "import sys; sys.path.insert(0, '.'); sys.argv[1:] = ['--help']; "]
    command[-1] += "import runpy; runpy.run_module('backend.bootstrap', run_name='__main__')"
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "example: python3 -m backend.bootstrap" in result.stdout


def test_a_killed_step_says_so(tmp_path):
    status, output = run_visibly(["/bin/sh", "-c", "kill -9 $$"], title="unpacking", log=tmp_path / "log")
    assert status != 0
    assert "killed by signal 9" in output
