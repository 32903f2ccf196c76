"""`transfiner soak` and `transfiner load` do what they say, on a small scale; their long runs are for people.

The one fault here is broken into a service on several hosts: API, queue server, Label Studio and images have loopback
addresses of their own, workers have copies of the model of their own, so that nothing is shared but the network.
"""

from __future__ import annotations

import json
import shutil
import socket
import time

import pytest
import requests
from click.testing import CliRunner

from backend.devtools.harness import Hosts, ServiceHarness
from backend.devtools.load import load
from backend.devtools.soak import BATCH_S, Annotators, Verdict, line, run_fault, run_random
from backend.processes.waiting import wait_until

pytestmark = pytest.mark.service

HOSTS = Hosts(api="127.0.0.2", queue="127.0.0.3", label_studio="127.0.0.4", images="127.0.0.5")


def test_several_hosts_one_of_which_dies(tmp_path):
    with ServiceHarness(hosts=HOSTS) as stage:
        for number in range(2):
            model = tmp_path / f"host-{number}" / "model"
            shutil.copytree(stage.model, model)
            stage.start_workers(1, model=model, seconds=BATCH_S)
        stage.set_up_project()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", stage.queue_server.port), timeout=5)
        verdict = run_fault(stage, "kill-worker", Annotators(stage, 1, 24))
    assert verdict.is_good, verdict
    assert verdict.stored_once == 24
    assert not verdict.failed


def cut_off(stage: ServiceHarness) -> None:
    with stage.links[1].cut():
        time.sleep(2.0)


def silent(stage: ServiceHarness) -> None:
    with stage.links[1].held():
        time.sleep(2.0)


def restart(stage: ServiceHarness) -> None:
    stage.end_queue()
    stage.start_queue()


@pytest.mark.parametrize("break_it", [cut_off, silent, restart])
def test_a_busy_worker_goes_on_by_itself_when_the_queue_server_is_back(break_it):
    """The same process, so its model is still warm; nobody asks again."""
    with ServiceHarness(is_breakable=True, predict_deadline_s="20") as stage:
        (worker,) = stage.start_workers(1, seconds=BATCH_S)
        stage.set_up_project()
        annotators = Annotators(stage, 1, 48, asks_again=False).start()
        wait_until(
            lambda: requests.get(f"{stage.address}/jobs?state=running", timeout=5).json()["jobs"], "A running task", 240
        )
        break_it(stage)
        verdict = annotators.wait(120).verdict(break_it.__name__)
        assert worker.poll() is None
        assert stage.living() == {worker.pid}
    assert verdict.is_good, verdict
    assert verdict.stored_once == 48
    assert not verdict.failed


@pytest.mark.slow
def test_random_faults_lose_and_double_nothing():
    """A minute; `transfiner soak --random` takes ten. A seed that fails is a fault to be mended, not bad luck."""
    verdict = run_random(60.0, seed=22)
    assert verdict.is_good, verdict
    assert verdict.stored_once + len(verdict.failed) == verdict.tasks > 0


def test_load_measures_the_queue():
    options = ["--stub", "--tasks", "8", "--json"]
    figures = json.loads(CliRunner().invoke(load, options, catch_exceptions=False).stdout)
    assert figures["served"]["tasks a second"] > 0
    assert set(figures["memory in MiB"]) == {"api", "worker", "queue server"}
    assert figures["one at a time"]["overhead p50 in ms"] > 0
    assert figures["start-up in s"]["worker to first prediction"] > 0


@pytest.mark.slow
def test_prompts_are_measured_beside_a_batch_that_does_not_end():
    """However few tasks are asked for."""
    options = ["--prompts", "1", "--tasks", "1", "--json"]
    figures = json.loads(CliRunner().invoke(load, options, catch_exceptions=False).stdout)
    assert figures["tasks beside"]["least"] > 0
    names = {f"{which} {share} in ms" for which in ("first", "later") for share in ("p50", "p95")}
    beside = next(value for name, value in figures.items() if name.startswith("beside"))
    assert set(figures["without a batch"]) == set(beside) == names
    assert all(value > 0 for value in beside.values())


@pytest.mark.parametrize(("lost", "doubled", "says"), [([], [], "ok"), ([3], [], "1 lost"), ([], [4], "1 doubled")])
def test_a_verdict_is_good_only_when_nothing_is_lost_or_doubled(lost, doubled, says):
    verdict = Verdict("none", 4, 3, {5: "reason"}, lost, doubled, 1.0)
    assert verdict.is_good == (says == "ok")
    assert says in line(verdict)
    assert "1 failed with a reason" in line(verdict)
