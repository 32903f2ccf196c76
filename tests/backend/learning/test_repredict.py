"""After a promotion: the backend's title follows, and what nobody has annotated is predicted anew."""

from __future__ import annotations

import pytest

from backend.api.app import create_app
from backend.errors import ServiceError
from backend.learning.label_studio import connect, follow_version, project_of
from backend.learning.repredict import Repredictor, repredicting
from backend.predictions.projects import Project, Projects
from backend.versions.resolve import active_version, project_name
from tests.support.fake_label_studio import TOKEN
from tests.support.learning_doubles import write_checkpoint
from tests.support.service import data_uri, setup_body, wait_until

pytestmark = pytest.mark.service

KEY = "7.1795339022"


class Backends:
    def __init__(self, *titles: str) -> None:
        self.rows = [{"id": n, "project": 7, "url": f"http://{n}", "title": title} for n, title in enumerate(titles)]
        self.patched: list[tuple[int, str]] = []

    def list_backends(self, project_id):
        return self.rows

    def update_backend(self, backend, **fields):
        self.patched.append((backend["id"], fields["title"]))


@pytest.mark.parametrize(
    ("client", "patched"),
    [
        pytest.param(Backends("v1"), [(0, "v2")], id="one backend is ours"),
        pytest.param(Backends("v2"), [], id="it is right already"),
        pytest.param(Backends("sam", "v1"), [(1, "v2")], id="another one beside ours"),
        pytest.param(Backends(), [], id="none is connected"),
    ],
)
def test_the_title_follows_the_version(client, patched):
    assert follow_version(client, 7, "v2", ours=lambda row: row["title"] != "sam") == bool(patched)
    assert client.patched == patched


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
    made = write_checkpoint(tmp_path / "made", "made", "weights")
    registry.promote("7", registry.publish("7", made, version="new-1"))
    client = create_app(learning).test_client()
    said = client.post("/setup", json=setup_body("http://ls", TOKEN)).get_json()
    assert said["model_version"] == "new-1"
    assert not learning.registry_cache.exists()


class Tasks:
    def __init__(self) -> None:
        self.rows = [
            {"id": n, "data": {"image": data_uri()}, "annotations": [], "predictions": []} for n in range(1, 5)
        ]
        self.rows[0]["annotations"] = [{"id": 1}]
        self.rows[1]["predictions"] = [{"model_version": "new-1"}]

    def iter_tasks(self, project_id, *, page_size=100, fields="all", query=None):
        return iter(self.rows)


def test_unlabelled_tasks_are_predicted_anew_and_pushed(learning, registry, redis, label_studio, workers, tmp_path):
    client = create_app(learning).test_client()
    client.post("/setup", json=setup_body(label_studio.url, TOKEN))
    made = write_checkpoint(tmp_path / "made", "made", "weights")
    registry.promote("7", registry.publish("7", made, version="new-1"))
    project = Projects(redis).get(KEY)
    assert Repredictor(learning, redis).run(project, Tasks(), "new-1") == 2
    assert repredicting(redis, "7") == {"version": "new-1", "total": 2, "left": 2}
    workers.start(registry=learning.registry, registry_cache=str(learning.registry_cache), fake={"seconds": 0.01})
    wait_until(lambda: len(label_studio.predictions) == 2)
    assert {(row["task"], row["model_version"]) for row in label_studio.predictions} == {
        (3, "new-1"),
        (4, "new-1"),
    }
    wait_until(lambda: repredicting(redis, "7")["left"] == 0)
