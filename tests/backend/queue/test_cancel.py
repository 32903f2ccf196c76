"""A person cancels what waits: whoever waits for it is answered, nothing is computed or pushed later."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.support.fake_label_studio import TOKEN
from tests.support.service import predict_body, setup_body, tasks, wait_until

pytestmark = pytest.mark.service

SEVEN, NINE = "7.1795339022", "9.1"


@pytest.fixture
def address(settings, serve, workers, label_studio) -> str:
    workers.end()
    url = serve(settings)
    for project in (SEVEN, NINE):
        body = setup_body(label_studio.url, TOKEN, project=project)
        assert requests.post(f"{url}/setup", json=body, timeout=20).status_code == 200
    return url


def ask(address: str, project: str, count: int = 3) -> dict:
    body = predict_body(tasks(count), project=project)
    return requests.post(f"{address}/predict", json=body, timeout=100).json()


def waiting(address: str) -> int:
    return requests.get(f"{address}/jobs", timeout=20).json()["waiting"]["predict"]


def form(address: str, **fields: str) -> dict[str, str]:
    page = requests.get(f"{address}/status", timeout=20).text
    return {"token": re.search(r'name="token" value="([0-9a-f]+)"', page)[1], **fields}


def test_one_projects_waiting_tasks_end_and_the_others_stay(address, workers):
    with ThreadPoolExecutor(2) as pool:
        cancelled_answer, other_answer = pool.submit(ask, address, SEVEN), pool.submit(ask, address, NINE)
        wait_until(lambda: waiting(address) == 6)
        page = requests.get(f"{address}/status", timeout=20).text
        assert page.count("Cancel them") == 2
        assert "Cancel the 6 waiting tasks?" in page
        outcome = requests.post(f"{address}/jobs/cancel", data=form(address, project="7"), timeout=20).json()
        assert outcome == {"status": "cancelled", "tasks": 3}
        answer = cancelled_answer.result()
        assert answer["results"] == [[], [], []]
        assert "Cancelled" in str(answer["errors"][0])
        assert waiting(address) == 3
        workers.start(fake={"seconds": 0.01})
        assert len(other_answer.result()["results"]) == 3
    assert len(ask(address, SEVEN)["results"][0]["result"]) > 0


def test_deferred_tasks_are_not_pushed_after_cancelling(settings, serve, workers, label_studio):
    workers.end()
    late = serve(settings.model_copy(update={"predict_deadline_s": 0.1}))
    requests.post(f"{late}/setup", json=setup_body(label_studio.url, TOKEN), timeout=20)
    assert ask(late, SEVEN) == {"results": []}
    assert requests.get(f"{late}/jobs", timeout=20).json()["deferred"] == 3
    page = requests.post(f"{late}/jobs/cancel", data=form(late), headers={"Accept": "text/html"}, timeout=20)
    assert page.url == f"{late}/status"
    assert requests.get(f"{late}/jobs", timeout=20).json()["deferred"] == 0
    assert waiting(late) == 0


def test_one_task_by_its_job_and_only_by_our_own_page(address):
    with ThreadPoolExecutor(1) as pool:
        answer_of_prediction = pool.submit(ask, address, SEVEN, 1)
        wait_until(lambda: waiting(address) == 1)
        job = requests.get(f"{address}/jobs?state=queued", timeout=20).json()["jobs"][0]["job"]
        url = f"{address}/jobs/{job}/cancel"
        assert requests.post(url, timeout=20).status_code == 403
        assert requests.post(f"{address}/jobs/cancel", timeout=20).status_code == 403
        assert requests.post(url, data=form(address), timeout=20).status_code == 200
        assert answer_of_prediction.result()["results"] == [[]]
        again = requests.post(url, data=form(address), timeout=20)
        assert again.status_code == 404
        assert "No job" in again.json()["error"]
