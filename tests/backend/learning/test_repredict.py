"""After a promotion: the backend's title follows, and what nobody has annotated is predicted anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.api.app import create_app
from backend.doctor.connection import SAMPLING
from backend.errors import ServiceError
from backend.learning.label_studio import Repredictor, connect, project_of, remove_notices, update_connection
from backend.predictions.projects import Project, Projects
from backend.queue.delivery import repredicting
from backend.versions.resolve import ServedModel, active_version, project_name
from tests.support.fake_label_studio import TOKEN
from tests.support.learning_doubles import write_checkpoint
from tests.support.service import CONFIG, data_uri, setup_body, wait_until

pytestmark = pytest.mark.service

KEY = "7.1795339022"


MODEL = ServedModel(Path("m"), "m", "v2", ("gear",), "")
SMART_BOX = """<RectangleLabels name="box" toName="image" smart="true" model_skip="true"><Label value="balloon"/>
</RectangleLabels><PolygonLabels"""


class Backends:
    """A project whose backends have these titles; notes what is set."""

    def __init__(self, *titles: str, config: str = CONFIG, sampling: str = "Sequential sampling") -> None:
        self.rows = [{"id": n, "project": 7, "url": f"http://{n}", "title": title} for n, title in enumerate(titles)]
        self.project = {"id": 7, "label_config": config, "sampling": sampling}
        self.hooks = [{"id": n, "project": 7, "url": f"http://{n}/webhook"} for n in range(len(titles))]
        self.made: list[tuple[str, object]] = []
        self.predictions: list[dict[str, object]] = []
        self.views = [{"id": 3, "data": {"hiddenColumns": {"explore": ["tasks:predictions_score", "tasks:id"]}}}]

    def list_backends(self, project_id):
        return self.rows

    def get_project(self, project_id):
        return self.project

    def list_webhooks(self, project_id):
        return self.hooks

    def update_backend(self, backend, **fields):
        self.made.append((f"backend {backend['id']}", fields))

    def update_project(self, project_id, **fields):
        self.made.append((f"project {project_id}", fields))

    def create_webhook(self, project_id, url, **fields):
        self.made.append((f"webhook {url}", fields))

    def list_views(self, project_id):
        return self.views

    def save_view(self, project_id, data, view_id=None):
        self.made.append((f"view {view_id}", data["hiddenColumns"]["explore"]))

    def list_predictions(self, *, project_id):
        return self.predictions

    def delete_predictions(self, project_id, model_version):
        self.made.append((f"delete {project_id}", model_version))


RENAMED = {"title": "v2"}
SHOWN = ("view 3", ["tasks:id"])
ORDERED = ("project 7", {"sampling": SAMPLING})


@pytest.mark.parametrize(
    ("client", "made"),
    [
        pytest.param(Backends("v1"), [("backend 0", RENAMED)], id="a new version serves: the title alone"),
        pytest.param(Backends("v2"), [], id="it is right already, and a person chose the order"),
        pytest.param(Backends("my model"), [("backend 0", RENAMED), ORDERED, SHOWN], id="connected just now"),
        pytest.param(Backends("sam", "v1"), [("backend 1", RENAMED)], id="another one beside ours"),
        pytest.param(Backends(), [], id="none is connected"),
    ],
)
def test_what_is_set_in_a_project(settings, client, made, monkeypatch):
    monkeypatch.setattr("backend.learning.label_studio.is_ours", lambda row: row["title"] != "sam")
    update = update_connection(settings, client, 7, MODEL, ["v1", "v2"])
    assert client.made == made
    assert update.is_connected == bool(client.rows)
    assert update.title == ("v2" if made else "")
    assert len(update.messages) == len(made)


def test_the_title_says_why_nothing_is_outlined_and_smart_tools_are_switched_on(settings, checkpoint):
    config = CONFIG.replace("gear", "balloon").replace("leaf", "kite").replace("<PolygonLabels", SMART_BOX, 1)
    client = Backends("my model", config=config, sampling=SAMPLING)
    client.rows[0]["is_interactive"] = False
    client.hooks = []
    with_prompts = settings.model_copy(update={"prompt_model": checkpoint})
    title = update_connection(with_prompts, client, 7, MODEL, ["v2"]).title
    assert title == (
        "Nothing outlined: v2 knows none of: balloon, kite. Smart tools work; annotate about 10, then Start Training. "
        f"{settings.status_url}"
    )
    assert client.made == [
        ("backend 0", {"title": title}),
        ("backend 0", {"title": title, "is_interactive": True}),
        ("webhook http://0/webhook", {"headers": {}}),
        SHOWN,
    ]


def test_only_notices_are_removed():
    client = Backends()
    client.predictions = [{"model_version": version} for version in ("v1", "Nothing outlined: a", None, "v2")]
    remove_notices(client, 7)
    assert client.made == [("delete 7", "Nothing outlined: a")]


def test_without_an_address_it_says_what_to_do(learning):
    with pytest.raises(ServiceError, match="is not known"):
        connect(learning, Project(key="7"))


def test_the_newest_setup_of_a_project_counts(redis):
    projects = Projects(redis)
    for key, host in (("7.1", "http://old"), ("7.2", "http://new"), ("8.1", "http://other")):
        projects.save(Project(key=key, hostname=host))
    assert project_of(projects, "7").hostname == "http://new"
    assert project_of(projects, "9") == Project(key="9")


@pytest.mark.parametrize(("key", "name"), [("7.17", "7"), ("7", "7"), ("", ""), ("../x.1", ""), ("a.1", "")])
def test_only_numbers_name_projects(key, name, learning):
    assert project_name(key) == name
    assert active_version(learning, key) is None


def test_setup_downloads_no_weights(learning, registry, tmp_path):
    """Label Studio gives it 3 s, and the registry may be far away."""
    checkpoint = write_checkpoint(tmp_path / "made", "made", "weights")
    registry.promote("7", registry.publish("7", checkpoint, version="new-1"))
    client = create_app(learning).test_client()
    answer = client.post("/setup", json=setup_body("http://ls", TOKEN)).get_json()
    assert answer["model_version"] == "new-1"
    assert not list(learning.registry_cache.rglob("*.safetensors"))


class Tasks:
    def __init__(self) -> None:
        self.rows = [
            {"id": n, "data": {"image": data_uri()}, "annotations": [], "predictions": []} for n in range(1, 5)
        ]
        self.rows[0]["annotations"] = [{"id": 1}]
        self.rows[1]["predictions"] = [{"model_version": "new-1"}]

    def iter_tasks(self, project_id, *, query=None):
        return iter(self.rows)


def test_unlabelled_tasks_are_predicted_anew_and_pushed(learning, registry, redis, label_studio, workers, tmp_path):
    client = create_app(learning).test_client()
    client.post("/setup", json=setup_body(label_studio.url, TOKEN))
    checkpoint = write_checkpoint(tmp_path / "made", "made", "weights")
    registry.promote("7", registry.publish("7", checkpoint, version="new-1"))
    project = Projects(redis).get(KEY)
    assert Repredictor(learning, redis).run(project, Tasks(), "new-1") == 2
    assert repredicting(redis, "7") == {"version": "new-1", "total": 2, "left": 2}
    workers.start(registry=learning.registry, registry_cache=str(learning.registry_cache), fake={"seconds": 0.01})
    wait_until(lambda: len(label_studio.predictions) == 2)
    assert {(row["task"], row["model_version"]) for row in label_studio.predictions} == {(3, "new-1"), (4, "new-1")}
    wait_until(lambda: repredicting(redis, "7")["left"] == 0)
