"""What was answered "deferred" is pushed although the queue server, a real one here, has forgotten everything."""

from __future__ import annotations

import sqlite3
import stat
import time
from pathlib import Path

import pytest
import requests

from backend.devtools.harness import PROJECT, ServiceHarness, label_config
from backend.errors import ServiceError, StartError
from backend.predictions.projects import Project, Projects
from backend.predictions.promises import PromiseKeeper
from backend.processes.waiting import wait_until
from backend.queue.delivery import DeliveryClaims
from backend.queue.job_queue import JobQueue, PredictionJob
from backend.queue.job_store import JobOutcome
from tests.support.service import CONFIG, finish

pytestmark = pytest.mark.service
TASKS = 8


def ask(stage: ServiceHarness, first: int) -> object:
    """What Label Studio hears about tasks that no worker computes in time."""
    body = {
        "tasks": [
            {"id": number, "data": {"image": f"{stage.images.url}/data/upload/32/{number}.png"}}
            for number in range(first, first + TASKS)
        ],
        "project": PROJECT,
        "label_config": label_config(("thing",)),
        "params": {"context": None},
    }
    return requests.post(f"{stage.address}/predict", json=body, timeout=60).json()


@pytest.mark.parametrize("pushed_before", [False, True], ids=["nothing was pushed", "half was pushed"])
@pytest.mark.parametrize("how", ["emptied", "restarted without its data", "restarted so, and the API killed"])
def test_deferred_tasks_outlive_a_queue_server_that_forgets(how, pushed_before):
    with ServiceHarness(predict_deadline_s="0.5", push_chunk="4") as stage:
        stage.set_up_project()
        assert ask(stage, 1) == {"results": []}
        if pushed_before:
            stage.start_workers(1)
            wait_until(lambda: len(stage.label_studio.stored()) == TASKS, "The first push", 120)
            stage.end_workers()
            assert ask(stage, 1 + TASKS) == {"results": []}
        if how == "emptied":
            with stage.connection() as connection:
                connection.flushall()
        else:
            if "API" in how:
                stage.end_api()
            stage.end_queue(forgets=True)
            stage.start_queue()
            if "API" in how:
                stage.start_api()
        stage.start_workers(1)
        expected = dict.fromkeys(range(1, 1 + TASKS * (1 + pushed_before)), 1)
        wait_until(lambda: len(stage.label_studio.stored()) == len(expected), "All predictions", 120)
        time.sleep(1.0)  # for copies
        assert stage.label_studio.stored() == expected


def test_a_project_that_was_forgotten_before_its_tasks_were_deferred_gets_its_address_back(settings, redis):
    """The queue server was restarted without its data while the request waited."""
    queue = JobQueue(redis, settings)
    deliveries, projects = DeliveryClaims(redis), Projects(redis)
    project = Project(PROJECT, hostname="http://label-studio:8080", token="t" * 40)
    job = PredictionJob(PROJECT, {"id": 1, "data": {"image": "1.png"}}, "1.png", CONFIG, "v1")
    queue.submit([job])
    deliveries.defer(deliveries.claim("request", [job.id], lifetime_s=60), {job.id: {"project": PROJECT, "task": 1}})
    keeper = PromiseKeeper(queue, deliveries, projects, settings.promises_folder / "1.sqlite3")
    keeper.keep(project, [job])
    assert keeper.look() == []
    assert projects.get(PROJECT).hostname == project.hostname
    assert projects.get(PROJECT).token == project.token
    finish(queue, job.id, JobOutcome(error="no such image"))
    deliveries.drop([job.id])
    assert keeper.look() == []
    assert len(keeper) == 0, "it ended with a reason"
    keeper.close()


def test_what_an_earlier_release_promised_is_looked_after(settings, redis):
    """It knew of fields that are no more; an upgrade must not end what was promised."""
    file = settings.promises_folder / "1.sqlite3"
    keeper = PromiseKeeper(JobQueue(redis, settings), DeliveryClaims(redis), Projects(redis), file)
    job = PredictionJob(PROJECT, {"id": 1, "data": {"image": "1.png"}}, "1.png", CONFIG, "v1")
    keeper.keep(Project(PROJECT, hostname="http://label-studio:8080"), [job])
    with sqlite3.connect(file) as database:
        database.execute("UPDATE texts SET text = json_set(text, '$.former', 1) WHERE name = ?", (PROJECT,))
        database.execute("UPDATE promises SET payload = json_set(payload, '$.former', 1)")
    database.close()
    assert keeper.look() == [job.id]
    assert keeper.queue.waiting() == [job.id]
    keeper.close()


def test_nothing_is_promised_that_cannot_be_noted(settings, redis, tmp_path):
    """On a full disk, and where the folder is a file, the answer is 503."""
    (tmp_path / "file").write_text("")
    queue = JobQueue(redis, settings)
    keeper = PromiseKeeper(queue, DeliveryClaims(redis), Projects(redis), tmp_path / "file" / "1.sqlite3")
    job = PredictionJob(PROJECT, {"id": 1, "data": {"image": "1.png"}}, "1.png", CONFIG, "v1")
    with pytest.raises(ServiceError, match="cannot be noted in") as caught:
        keeper.keep(Project(PROJECT), [job])
    assert caught.value.status == 503
    with pytest.raises(StartError, match="cannot be noted"):
        keeper.resume()


def shortened(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4000])


def overwritten(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))


def foreign(file: Path) -> None:
    file.write_bytes(b"no database at all" * 300)


@pytest.mark.parametrize(
    ("damage", "is_in_use"), [(shortened, False), (overwritten, False), (foreign, False), (foreign, True)]
)
def test_a_damaged_file_is_put_aside_and_promises_go_on(settings, redis, caplog, damage, is_in_use):
    """Half written when the machine crashed, for example. The API would not start, or refuse all late predictions."""
    file = settings.promises_folder / "1.sqlite3"
    parts = (JobQueue(redis, settings), DeliveryClaims(redis), Projects(redis), file)
    jobs = [
        PredictionJob(PROJECT, {"id": number, "data": {"image": "x" * 300}}, f"{number}.png", CONFIG, "v1")
        for number in range(40)
    ]
    keeper = PromiseKeeper(*parts)
    keeper.keep(Project(PROJECT), jobs[:39])
    if not is_in_use:
        keeper.close()
    damage(file)
    if not is_in_use:
        keeper = PromiseKeeper(*parts)
        keeper.resume()
    keeper.keep(Project(PROJECT), jobs[39:])
    assert len(keeper) == 1
    assert [path.name.partition(".damaged")[0] for path in file.parent.glob("*damaged*")] == [file.name]
    assert "is damaged" in caplog.text
    keeper.close()


def test_only_its_user_may_read_what_was_promised(settings, redis):
    file = settings.promises_folder / "1.sqlite3"
    keeper = PromiseKeeper(JobQueue(redis, settings), DeliveryClaims(redis), Projects(redis), file)
    keeper.keep(Project(PROJECT, token="t" * 40), [])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    keeper.close()
