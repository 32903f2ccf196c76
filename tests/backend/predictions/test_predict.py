"""POST /predict through real HTTP, queue and worker processes, with a fake model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.support.fake_label_studio import TOKEN
from tests.support.service import CONFIG, data_uri, predict_body, setup_body, tasks, wait_until

pytestmark = pytest.mark.service

TWO_IMAGES = CONFIG.replace('value="$image"', 'value="$picture"')


def ask(address: str, body: dict, **options) -> requests.Response:
    return requests.post(f"{address}/predict", json=body, timeout=100, **options)


def in_state(address: str, state: str) -> list[dict]:
    return requests.get(f"{address}/jobs?state={state}", timeout=10).json()["jobs"]


def test_results_come_in_task_order_with_the_version_on_each(settings, serve, workers, redis):
    workers.start(max_batch=3)
    items = [{"id": n, "data": {"image": data_uri(8 * n)}} for n in range(1, 8)]
    body = ask(serve(settings), predict_body(items)).json()
    assert "errors" not in body
    assert [item["result"][0]["original_width"] for item in body["results"]] == [8 * n for n in range(1, 8)]
    for item in body["results"]:
        assert item["model_version"] == "fake-1"
        assert 0 <= item["score"] <= 1
        assert item["result"][0]["value"]["polygonlabels"] == ["gear"]
    assert max(int(size) for size in redis.lrange("fake:batches", 0, -1)) == 3


def test_what_was_computed_is_remembered(settings, serve, workers, redis):
    workers.start()
    address = serve(settings)
    first = ask(address, predict_body(tasks(3))).json()
    assert ask(address, predict_body(tasks(3))).json() == first
    assert int(redis.get("fake:images")) == 3


def test_three_parallel_identical_requests_compute_once(settings, serve, workers, redis):
    workers.start(fake={"seconds": 0.5})
    address = serve(settings)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: ask(address, predict_body(tasks(1))).json(), range(3)))
    assert [len(answer["results"]) for answer in answers] == [1, 1, 1]
    assert answers[0] == answers[1] == answers[2]
    assert int(redis.get("fake:images")) == 1


def test_label_studio_gets_one_of_three_parallel_answers_so_that_it_stores_one(
    settings, serve, workers, redis, label_studio
):
    workers.start(fake={"seconds": 0.5})
    address = serve(settings)
    requests.post(f"{address}/setup", json=setup_body(label_studio.url, TOKEN), timeout=20)
    body = predict_body(tasks(1), project="7.1795339022")
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: ask(address, body).json(), range(3)))
    assert sorted(len(answer["results"]) for answer in answers) == [0, 0, 1]
    assert ask(address, body).json()["results"], "asked again later, it is answered again"
    assert int(redis.get("fake:images")) == 1
    assert label_studio.predictions == []


def test_one_open_task_is_answered_before_the_many_that_contain_it(settings, serve, workers, label_studio):
    """Somebody looks at task 3 while all tasks are retrieved: that answer comes at once, the others are pushed."""
    workers.start(max_batch=1, fake={"seconds": 0.5})
    address = serve(settings)
    requests.post(f"{address}/setup", json=setup_body(label_studio.url, TOKEN), timeout=20)
    with ThreadPoolExecutor(1) as pool:
        many = pool.submit(ask, address, predict_body(tasks(8), project="7.1795339022"))
        wait_until(lambda: in_state(address, "running"))
        single = ask(address, predict_body(tasks(1, start=3), project="7.1795339022")).json()
        assert len(single["results"]) == 1
        assert many.result().json() == {"results": []}
    wait_until(lambda: len(label_studio.predictions) >= 7)
    assert sorted(row["task"] for row in label_studio.predictions) == [1, 2, 4, 5, 6, 7, 8]


def test_a_broken_image_fails_its_own_task_only(settings, serve, workers):
    workers.start(fake={"fail": 24})
    items = tasks(4)
    items[1]["data"]["image"] = "data:image/jpeg;base64,AAAA"
    items[2]["data"]["image"] = data_uri(24)
    body = ask(serve(settings), predict_body(items)).json()
    assert [bool(item) for item in body["results"]] == [True, False, False, True]
    assert body["results"][1] == [], "an empty list stores nothing; Label Studio asks again when the image is repaired"
    assert [error["task"] for error in body["errors"]] == [2, 3]
    assert all(error["error"] for error in body["errors"])


def test_a_failed_task_is_tried_again_when_asked_again(settings, serve, workers, redis):
    workers.start(fake={"fail": 24})
    address = serve(settings)
    for _ in range(2):
        body = ask(address, predict_body(tasks(1, image=data_uri(24)))).json()
        assert body["results"] == [[]]
    assert int(redis.get("fake:images")) == 2


@pytest.mark.parametrize(
    ("data", "config", "is_found"),
    [
        ({"image": data_uri()}, CONFIG, True),
        ({"$undefined$": data_uri()}, CONFIG, True),  # uploaded before there was a label config
        ({"picture": data_uri(), "image": "nonsense"}, TWO_IMAGES, True),
        ({"text": "no image at all"}, CONFIG, False),
        ({"image": None}, CONFIG, False),
        ({"image": 7}, CONFIG, False),
        ({}, CONFIG, False),
    ],
)
def test_the_image_is_found_under_its_key(settings, serve, workers, data, config, is_found):
    workers.start()
    body = {**predict_body([{"id": 1, "data": data}]), "label_config": config}
    answer = ask(serve(settings), body).json()
    assert len(answer["results"]) == 1
    assert bool(answer["results"][0]) == is_found
    assert ("errors" in answer) == (not is_found)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ("not json", 400, "JSON"),
        ([1, 2], 400, "PredictRequest"),
        ({}, 400, "tasks"),
        ({"tasks": "all"}, 400, "tasks"),
        ({"tasks": [{"id": 1}]}, 400, "data"),
        ({"tasks": [{"id": 1, "data": []}]}, 400, "data"),
        ({**predict_body(tasks(1)), "label_config": "<View><Choices name='c' toName='t'/></View>"}, 422, ""),
        ({**predict_body(tasks(1)), "label_config": "<View"}, 422, ""),
        ({**predict_body(tasks(1)), "label_config": CONFIG.replace("gear", "car").replace("leaf", "dog")}, 422, "gear"),
        (predict_body(tasks(6)), 400, "MAX_TASKS"),
    ],
)
def test_bad_requests_get_a_reason_and_a_hint(settings, serve, body, status, says):
    address = serve(settings.model_copy(update={"max_tasks_per_request": 5}))
    kind = {"Content-Type": "application/json"}
    if isinstance(body, str):
        answer = requests.post(f"{address}/predict", body, headers=kind, timeout=20)
    else:
        answer = ask(address, body)
    assert answer.status_code == status
    facts = answer.json()
    assert set(facts) == {"error", "hint", "request_id"}
    assert facts["request_id"] == answer.headers["X-Request-Id"]
    assert says in facts["error"] + facts["hint"]
    # Label Studio drops the body and shows the reason phrase.
    assert answer.reason[:60].strip() in facts["error"].replace("\n", " ")


def test_no_tasks_no_results(settings, serve):
    assert ask(serve(settings), predict_body([])).json() == {"results": []}


def test_an_interactive_request_gets_the_object_it_points_at(settings, serve, workers):
    workers.start()
    inside = {"result": [{"type": "keypointlabels", "value": {"x": 50, "y": 50, "width": 0.3}}]}
    outside = {"result": [{"type": "keypointlabels", "value": {"x": 5, "y": 5, "width": 0.3}}]}
    address = serve(settings)
    assert len(ask(address, predict_body(tasks(1), context=inside)).json()["results"][0]["result"]) == 1
    assert ask(address, predict_body(tasks(1), context=outside)).json()["results"][0]["result"] == []


def test_an_interactive_failure_is_told_in_the_status_line(settings, serve, workers):
    """`results: []` would be shown as a protocol error; the reason phrase is the only text that arrives."""
    workers.start()
    answer = ask(serve(settings), predict_body(tasks(1, image="data:image/jpeg;base64,AAAA"), context={"result": []}))
    assert answer.status_code == 422
    assert "image" in answer.reason


def test_an_interactive_request_overtakes(settings, serve, workers):
    workers.start(max_batch=1, fake={"seconds": 0.5})
    address = serve(settings)
    with ThreadPoolExecutor(1) as pool:
        many = pool.submit(ask, address, predict_body(tasks(12)))
        wait_until(lambda: in_state(address, "running"))
        # Task 12 waits as the last of the slow lane, and is moved.
        ask(address, predict_body(tasks(1, start=12), context={"result": []}))
        assert len(in_state(address, "queued")) >= 5
        assert len(many.result().json()["results"]) == 12


def test_an_interactive_request_has_a_short_deadline(settings, serve):
    address = serve(settings.model_copy(update={"interactive_deadline_s": 0.2}))
    answer = ask(address, predict_body(tasks(1), context={"result": []}))
    assert answer.status_code == 504
    assert "Not ready" in answer.reason


def test_a_worker_with_another_model_says_so(settings, serve, workers, tmp_path):
    workers.start()
    (tmp_path / "metadata.json").write_text('{"name": "fake", "version": "fake-2", "classes": ["gear"]}')
    answer = ask(serve(settings.model_copy(update={"model": tmp_path})), predict_body(tasks(1))).json()
    assert answer["results"] == [[]]
    assert "fake-2" in answer["errors"][0]["error"]


def test_a_replaced_checkpoint_is_served_without_a_restart(settings, serve, workers, checkpoint):
    """By the same worker, which then answers with the new version."""
    workers.start()
    address = serve(settings)
    assert ask(address, predict_body(tasks(1))).json()["results"][0]["model_version"] == "fake-1"
    metadata = checkpoint / "metadata.json"
    before = metadata.read_text()
    try:
        metadata.write_text(before.replace("fake-1", "fake-2"))
        assert requests.get(f"{address}/versions", timeout=20).json()["versions"] == ["fake-2"]
        assert ask(address, predict_body(tasks(1))).json()["results"][0]["model_version"] == "fake-2"
    finally:
        metadata.write_text(before)
