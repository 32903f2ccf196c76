"""The page that people look at."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from backend.api.app import create_app
from backend.api.learning import project_link
from backend.predictions.projects import Project
from backend.processes.embedded_redis import free_port
from backend.processes.supervisor import VARIABLE, PausedParts
from backend.queue.job_store import JobOutcome
from backend.queue.recovery import Heartbeat
from tests.support.fake_label_studio import TOKEN
from tests.support.service import CONFIG, finish, predict_body, setup_body, tasks

pytestmark = pytest.mark.service
UNKNOWN = CONFIG.replace("gear", "x").replace("leaf", "y")


class Texts(HTMLParser):
    """Checks that tags are balanced, collects the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br", "input", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + " "


def read(page: str) -> str:
    parser = Texts()
    parser.feed(page)
    assert parser.open == []
    return " ".join(parser.text.split())


@pytest.fixture
def client(settings):
    app = create_app(settings)
    app.extensions["transfiner"].queue.is_stopping = True
    return app.test_client()


@pytest.mark.parametrize(
    ("hostname", "is_believed", "link"),
    [
        ("http://ls:8080", True, "http://ls:8080/projects/7/data"),
        ("http://ls:8080", False, ""),
        ("javascript:alert(1)", True, ""),
    ],
)
def test_a_project_links_to_label_studio(hostname, is_believed, link):
    assert project_link(Project(key="7.1", hostname=hostname, is_believed=is_believed)) == link


def test_an_idle_service_says_what_to_do_next(client):
    text = read(client.get("/status").text)
    assert "fake-1" in text
    assert "No worker that predicts is alive" in text
    assert "Connect this address" in text


def test_it_shows_queue_workers_projects_and_errors_with_their_fix(client, redis):
    client.post("/setup", json=setup_body("http://ls:8080", TOKEN))
    client.post("/setup", json=setup_body("http://ls:8080", TOKEN, project="9.1", config=UNKNOWN))
    client.post("/predict", json=predict_body(tasks(3), project="7.1795339022"))
    queue = client.application.extensions["transfiner"].queue
    job = queue.waiting()[0]
    finish(queue, job, JobOutcome(error="<b>a broken image</b>", hint="upload it again"))
    Heartbeat(redis, "worker-1", lost_after_s=60).beat({"version": "fake-1", "memory_mib": 321})
    page = client.get("/status").text
    text = read(page)
    for part in (
        "3 waiting",
        "worker-1",
        "321 MiB",
        "Project 7",
        "knows none of: x, y. Annotate about 10",
        "a broken image",
        "upload it again",
        "deferred",
    ):
        assert part in text
    assert "<b>a broken" not in page, "escaped"
    assert TOKEN not in page
    assert 'http-equiv="refresh"' in page
    assert "width=device-width" in page
    assert "projects/7/data" not in page, "an address that anybody could have sent is not linked"
    assert "data-confirm" in page


def test_without_a_queue_server_it_says_so(settings):
    alone = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_port()}/0"})
    answer = create_app(alone).test_client().get("/status")
    assert answer.status_code == 200
    assert "queue server does not answer" in read(answer.text)


def test_a_browser_is_led_there_and_programs_are_not(client):
    assert client.get("/", headers={"Accept": "text/html,*/*;q=0.8"}).headers["Location"] == "status"
    assert client.get("/").get_json()["status"] == "UP"


def test_a_paused_part_is_named(client, redis, monkeypatch):
    parts = PausedParts()
    parts.note("train-worker", "train-worker ended 6 times within 60 s")
    monkeypatch.setenv(VARIABLE, str(parts.file))
    assert "train-worker ended 6 times" in client.get("/status").text
    assert "train-worker ended 6 times" in client.get("/ready").get_json()["paused"][0]
    parts.note("train-worker")
    assert client.get("/ready").get_json()["paused"] == []
