"""The process tree, with real processes: it starts in order, revives what dies, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backend.processes.supervisor import VARIABLE, paused_parts
from tests.support.service import ROOT, wait_until

pytestmark = pytest.mark.service

# A child that notes its pid, and ends politely unless told to be stubborn.
CHILD = """
import os, signal, sys, time
name, stubborn = sys.argv[1], sys.argv[2] == "stubborn"
if stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(name, "a") as file:
    file.write(f"{os.getpid()}\\n")
while True:
    time.sleep(0.05)
"""
TREE = """
import json, logging, os, sys
from pathlib import Path
from backend.processes.supervisor import Child, Supervisor
logging.basicConfig(level="INFO")
folder, specs = Path(sys.argv[1]), json.loads(sys.argv[2])
programs = {"missing": "/no/such", "linked": str(folder / "python")}
children = [
    Child(
        name,
        [programs.get(manner, sys.executable), str(folder / "child.py"), str(folder / name), manner],
        ready=(folder / name).exists, start_timeout_s=spec.get("timeout", 60), grace_s=spec.get("grace", 20),
        restarts=spec.get("restarts", 3),
    )
    for name, spec in specs.items()
    for manner in [spec.get("manner", "polite")]
]
sys.exit(Supervisor(children, when_ready=(folder / "ready").touch).run())
"""


def pids(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A killed process that nobody has waited for yet is dead all the same.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def paused_file(pid: int) -> Path:
    """Where a child reads what is paused."""
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    (file,) = [value.partition("=")[2] for value in variables if value.startswith(f"{VARIABLE}=")]
    return Path(file)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Callable[[dict], subprocess.Popen[str]]]:
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "tree.py").write_text(textwrap.dedent(TREE))
    started = []

    def start(specs: dict) -> subprocess.Popen[str]:
        command = [sys.executable, str(tmp_path / "tree.py"), str(tmp_path), json.dumps(specs)]
        process = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_everything_the_last_started_first(tree, tmp_path, number):
    process = tree({"a": {}, "b": {}})
    wait_until((tmp_path / "ready").exists)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert errors.index("ended b") < errors.index("ended a")
    assert not any(is_alive(pid) for name in "ab" for pid in pids(tmp_path / name))


def test_a_dead_child_is_started_again_and_reported(tree, tmp_path):
    process = tree({"a": {}, "b": {}})
    wait_until((tmp_path / "ready").exists)
    os.kill(pids(tmp_path / "a")[0], signal.SIGKILL)
    wait_until(lambda: len(pids(tmp_path / "a")) == 2)
    assert is_alive(pids(tmp_path / "a")[1])
    assert len(pids(tmp_path / "b")) == 1
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert "a ended (killed by SIGKILL); restarting it (1 of 3)" in errors


def test_a_child_that_keeps_dying_is_paused_and_the_others_go_on(tree, tmp_path, monkeypatch):
    process = tree({"a": {"restarts": 1}, "b": {}})
    wait_until((tmp_path / "ready").exists)
    for count in (1, 2):
        wait_until(lambda count=count: len(pids(tmp_path / "a")) == count)
        os.kill(pids(tmp_path / "a")[-1], signal.SIGKILL)
    wait_until(lambda: len(pids(tmp_path / "a")) == 3)
    assert len(pids(tmp_path / "b")) == 1
    assert is_alive(pids(tmp_path / "b")[0])
    monkeypatch.setenv(VARIABLE, str(paused_file(pids(tmp_path / "b")[0])))
    (sentence,) = paused_parts()
    assert sentence.startswith("Paused: a ended 2 times within 60 s (last: killed by SIGKILL), tried again after 5 s.")
    os.kill(pids(tmp_path / "b")[0], signal.SIGKILL)
    wait_until(lambda: len(pids(tmp_path / "b")) == 2)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "a ended 2 times within 60 s (last: killed by SIGKILL); paused for 5 s, the others go on" in errors


def test_a_child_that_cannot_be_started_again_is_paused_and_the_others_go_on(tree, tmp_path, monkeypatch):
    """For want of memory, for example; the folder in which the API reads of it was tidied up meanwhile."""
    (tmp_path / "python").symlink_to(sys.executable)
    process = tree({"a": {"manner": "linked", "restarts": 1}, "b": {}})
    wait_until((tmp_path / "ready").exists)
    (tmp_path / "python").unlink()
    file = paused_file(pids(tmp_path / "b")[0])
    shutil.rmtree(file.parent)
    os.kill(pids(tmp_path / "a")[0], signal.SIGKILL)
    monkeypatch.setenv(VARIABLE, str(file))
    wait_until(paused_parts)
    assert is_alive(pids(tmp_path / "b")[0])
    (tmp_path / "python").symlink_to(sys.executable)
    wait_until(lambda: len(pids(tmp_path / "a")) == 2)
    process.terminate()
    assert process.wait(60) == 0


def test_a_child_that_keeps_dying_while_the_tree_starts_is_a_clear_error(tree, tmp_path):
    (tmp_path / "child.py").write_text("raise SystemExit(3)")
    process = tree({"a": {"restarts": 1}, "b": {}})
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a ended 2 times within 60 s (last: exit code 3); giving up" in errors


def test_killing_the_supervisor_ends_the_children(tree, tmp_path):
    process = tree({"a": {}, "b": {}})
    wait_until((tmp_path / "ready").exists)
    process.kill()
    process.wait()
    wait_until(lambda: not any(is_alive(pid) for name in "ab" for pid in pids(tmp_path / name)))


def test_a_stubborn_child_is_killed_after_its_grace(tree, tmp_path):
    process = tree({"a": {"manner": "stubborn", "grace": 0.3}})
    wait_until((tmp_path / "ready").exists)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert "did not end within" in errors
    assert not is_alive(pids(tmp_path / "a")[0])


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        ({"a": {"manner": "missing"}}, "Cannot start a"),
        ({"a": {}, "never/written": {"timeout": 0.5, "restarts": 99}}, "was not ready after"),
    ],
)
def test_a_child_that_cannot_start_is_a_clear_error(tree, tmp_path, specs, says):
    process = tree(specs)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert says in errors
    assert not any(is_alive(pid) for pid in pids(tmp_path / "a"))
