"""Triggers are derived from Label Studio's data: what webhooks do with it changes nothing."""

from __future__ import annotations

import json
import time

import pytest

from backend.api.app import create_app
from backend.learning import round as runs
from backend.learning.label_studio import TriggerState, count_new_annotations, training_reason
from backend.learning.train_worker import Watcher
from backend.queue.keys import TRAININGS
from backend.queue.train_queue import BUTTON, CORRECTIONS, SCHEDULE, new_run
from tests.support.service import setup_body

pytestmark = pytest.mark.service

PROJECT = "7"
NEWEST = "2026-03-01T10:00:00.500000+00:00"
RECORDINGS = ("40_webhook_annotation_created", "42_webhook_annotation_updated", "44_webhook_annotations_deleted")


class Client:
    """Tasks as the API lists them."""

    def __init__(self, *moments: str, **annotation: object) -> None:
        self.tasks = [{"annotations": [{"updated_at": m, **annotation}]} for m in moments] + [{"annotations": []}]
        self.queries: list[str | None] = []

    def iter_tasks(self, project_id, *, query=None):
        self.queries.append(query)
        return iter(self.tasks)


@pytest.mark.parametrize(
    ("client", "newest", "expected"),
    [
        pytest.param(Client("2026-03-01T10:00:00.500001Z"), NEWEST, 1, id="a microsecond later"),
        pytest.param(Client("2026-03-01T10:00:00.500000Z"), NEWEST, 0, id="the newest itself"),
        pytest.param(Client("2026-03-01T12:00:00.400000+02:00"), NEWEST, 0, id="another time zone, earlier"),
        pytest.param(Client("2026-03-01T11:00:00Z", was_cancelled=True), NEWEST, 0, id="skipped"),
        pytest.param(Client("2026-03-01T11:00:00Z", "2020-01-01T00:00:00Z"), "", 2, id="no snapshot yet"),
    ],
)
def test_new_annotations_are_counted_by_time(client, newest, expected):
    assert count_new_annotations(client, 7, newest) == expected


def test_only_tasks_that_changed_are_read():
    client = Client()
    count_new_annotations(client, 7, NEWEST)
    filters = json.loads(client.queries[0])["filters"]
    assert filters["conjunction"] == "or"
    assert {item["filter"] for item in filters["items"]} == {"filter:tasks:updated_at", "filter:tasks:completed_at"}
    assert filters["items"][0]["value"] == "2026-03-01T09:55:00.000Z"


@pytest.mark.parametrize(
    ("looked", "options", "expected"),
    [
        pytest.param(TriggerState(9), {}, "", id="nobody asked for automatic training"),
        pytest.param(TriggerState(9), {"train_after": 10}, "", id="too few"),
        pytest.param(TriggerState(10), {"train_after": 10}, CORRECTIONS, id="enough"),
        pytest.param(TriggerState(1, 2.0), {"train_every_h": 2}, SCHEDULE, id="time"),
        pytest.param(TriggerState(1), {"train_every_h": 2}, SCHEDULE, id="the first by time"),
        pytest.param(TriggerState(0, 99.0), {"train_every_h": 2}, "", id="time, but nothing new"),
        pytest.param(TriggerState(1, 1.0), {"train_every_h": 2}, "", id="not yet"),
        pytest.param(TriggerState(12, 0.1, 12), {"train_after": 10}, "", id="failed with just this"),
        pytest.param(TriggerState(13, 0.1, 12), {"train_after": 10}, CORRECTIONS, id="failed with less"),
    ],
)
def test_when_to_train(learning, looked, options, expected):
    assert training_reason(looked, learning.model_copy(update=options)) == expected


@pytest.fixture
def client(learning):
    """Of an API that project 7 is connected to."""
    client = create_app(learning).test_client()
    assert client.post("/setup", json=setup_body("http://ls:8080", "t" * 40)).status_code == 200
    return client


def start_training(project: object = 7) -> dict:
    return {"action": "START_TRAINING", "project": {"id": project, "label_config": "<View/>"}}


def test_start_training_queues_one_round_and_says_so(client, queue, redis):
    first = client.post("/webhook", json=start_training()).get_json()
    assert first["status"] == "queued"
    assert "worker --queues train" in first["message"], "nobody takes it now"
    second_answer = client.post("/webhook", json=start_training()).get_json()
    assert (second_answer["status"], second_answer["job"]) == ("folded in", first["job"])
    assert queue.current(PROJECT)["trigger"] == BUTTON
    assert redis.llen(TRAININGS) == 1


def test_a_forged_start_training_trains_nothing(client, queue, learner, store, wishes):
    """Label Studio is asked before anything is done."""
    wishes.set(new=0)
    run = client.post("/webhook", json=start_training()).get_json()["job"]
    learner.learn(PROJECT, run)
    assert store.load(PROJECT, run).state == runs.UNCHANGED
    assert wishes.done("snapshot") == []
    assert client.post("/webhook", json=start_training(99)).status_code == 404
    assert queue.current("99") == {}


def test_learning_that_is_off_says_so(learning):
    answer = (
        create_app(learning.model_copy(update={"registry": ""})).test_client().post("/webhook", json=start_training())
    )
    assert answer.status_code == 409
    assert "TRANSFINER_REGISTRY" in answer.get_json()["error"]


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(0, id="all were lost"),
        pytest.param(1, id="each came once"),
        pytest.param(3, id="each came three times"),
    ],
)
def test_events_only_say_look_now(client, queue, learner, wishes, events):
    """Whatever comes, the look gives the same answer."""
    learner.settings.train_after = 5
    wishes.set(new=5)
    watcher = Watcher(learner)
    for _ in range(events):
        for action in ("ANNOTATION_CREATED", "ANNOTATION_UPDATED"):
            body = {"action": action, "project": {"id": 7}, "task": {"id": 1}, "annotation": {"id": 3, "task": 1}}
            assert client.post("/webhook", json=body).status_code == 200
    watcher.look_after_all()
    assert queue.current(PROJECT)["trigger"] == CORRECTIONS
    learner.learn(PROJECT, queue.current(PROJECT)["run"])
    for _ in range(events):
        assert client.post("/webhook", json={**body, "action": "ANNOTATION_CREATED"}).status_code == 200
    assert watcher.look(PROJECT) == "", "late and forged ones find nothing new"
    assert len(wishes.done("finetune")) == 1


def test_submitting_again_without_a_change_does_not_train_for_ever(queue, learner, wishes, store):
    learner.settings.train_after = 1
    wishes.set(new=1)
    watcher = Watcher(learner)
    assert watcher.look(PROJECT) == CORRECTIONS
    learner.learn(PROJECT, queue.current(PROJECT)["run"])
    wishes.set(at="2026-02-02T00:00:00+00:00")
    assert watcher.look(PROJECT) == CORRECTIONS, "it is newer"
    learner.learn(PROJECT, queue.current(PROJECT)["run"])
    assert store.newest(PROJECT)[0].state == runs.UNCHANGED
    assert watcher.look(PROJECT) == "", "but the same"


def test_label_studio_away_is_told_on_the_page(learner, wishes, client):
    wishes.set(away=True)
    assert Watcher(learner).look(PROJECT) == ""
    assert "Label Studio is away" in client.get("/status").text


def test_runs_of_one_second_are_in_order():
    """The newest run is the one whose name sorts last."""
    names = []
    for _ in range(50):
        names.append(new_run())
        time.sleep(0.001)
    assert names == sorted(set(names))
    assert all(runs.RUN_ID.fullmatch(name) for name in names)
