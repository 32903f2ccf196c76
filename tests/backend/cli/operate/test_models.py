"""`transfiner models`: import, fetch from a loopback server, list and show, each failure in one message."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from backend.cli.operate import models as models_command
from backend.cli.operate.models import CARD_COLUMNS, card_facts, models
from backend.versions.store import SHIPPED, stored_models
from model.checkpoints.import_released import expected_state
from model.checkpoints.metadata import WEIGHTS_FILE, file_digest
from model.checkpoints.releases import RELEASES
from model.errors import MissingRequirementError

pytestmark = pytest.mark.service


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        return


def run(*arguments: object) -> Result:
    return CliRunner().invoke(models, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `.pth` as the authors write it (two classes, all zeros) and its class names."""
    folder = tmp_path_factory.mktemp("files")
    state = expected_state("released/R50-FPN", 2)
    # Views of one stored zero: a whole network in a small file.
    torch.save(
        {"model": {n: torch.zeros((), dtype=t.dtype).expand(t.shape) for n, t in state.items()}}, folder / "output.pth"
    )
    (folder / "classes.txt").write_text("cat\ndog\n\n")
    (folder / "page.html").write_text("<html>quota exceeded</html>")
    (folder / "cut.pth").write_bytes((folder / "output.pth").read_bytes()[:500])
    return folder


@pytest.fixture(scope="module")
def address(files: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(files)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def store(files: Path, address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one fetched checkpoint."""
    store = tmp_path_factory.mktemp("store")
    result = run(
        "fetch",
        "R50-FPN-3x",
        "--url",
        f"{address}/output.pth",
        "--classes",
        files / "classes.txt",
        "--half",
        "--store",
        store,
        "--json",
    )
    assert result.exit_code == 0, result.output
    return store


def test_the_table_has_the_figures_of_the_cards_and_the_releases() -> None:
    table = run()
    assert table.exit_code == 0
    head, _, *rows = table.stdout.splitlines()
    assert head.split() == ["model", "here", "knows", "MB", "AP", "milliseconds"]
    assert {row.split()[0] for row in rows} >= {"photos", "scenes-small", *RELEASES}
    for name in ("photos", "scenes-small"):
        assert set(card_facts(SHIPPED / name)) == set(CARD_COLUMNS), f"the card of {name} has no such table"


def test_the_shipped_weights_are_small() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) <= 40e6


def test_fetch_records_where_the_file_came_from_and_its_digest(store: Path, files: Path, address: str) -> None:
    result = run("show", "R50-FPN-3x", "--store", store, "--json")
    facts = json.loads(result.stdout)
    assert facts["classes"] == ["cat", "dog"]
    assert facts["source"]["url"] == f"{address}/output.pth"
    assert facts["source"]["sha256"] == file_digest(files / "output.pth")
    assert facts["digest"] == file_digest(store / "R50-FPN-3x" / WEIGHTS_FILE)
    assert list((store / "downloads").iterdir()) == []  # the .pth is gone unless --keep


def test_list_shows_what_is_stored_and_what_can_be_fetched(store: Path) -> None:
    outcome = json.loads(run("list", "--store", store, "--json").stdout)
    mine = [entry for entry in outcome["stored"] if entry["directory"] == str(store / "R50-FPN-3x")]
    assert [entry["classes"] for entry in mine] == [["cat", "dog"]]
    assert len(outcome["released"]) == 8
    text = run("list", "--store", store).stdout
    assert "R50-FPN-3x" in text
    (release_line,) = (line for line in text.splitlines() if line.startswith("Swin-B-FPN-3x"))
    assert "COCO val mask AP 45.5" in release_line


def test_show_prints_the_metadata_for_people(store: Path) -> None:
    text = run("show", store / "R50-FPN-3x").stdout
    assert "classes: cat, dog" in text


def test_show_notices_changed_weights(store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "changed"
    copy.mkdir()
    for file in (store / "R50-FPN-3x").iterdir():
        if file.name != WEIGHTS_FILE:
            (copy / file.name).write_bytes(file.read_bytes())
    (copy / WEIGHTS_FILE).write_bytes(b"other")
    result = run("show", copy)
    assert result.exit_code == 1
    assert "the file is incomplete or was changed" in result.stderr


def test_a_broken_checkpoint_is_listed_with_its_problem(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "metadata.json").write_text("{")
    [model] = [entry for entry in stored_models(tmp_path) if entry.directory.parent == tmp_path]
    assert "is not JSON" in model.problem


FAILURES = [
    (["import", "{files}/none.pth"], "none.pth does not exist"),
    (["import", "{files}/page.html"], "not a"),
    (["import", "{files}/output.pth"], "has 2 classes, whose names it does not hold"),
    (["import", "{files}/output.pth", "--name", "../out"], "--name is '../out'"),
    (["import", "{files}/output.pth", "--classes", "{files}/none.txt"], "none.txt"),
    (["fetch", "R18"], "no released checkpoint 'R18'; expected one of R50-FPN-1x"),
    (["fetch", "R50-FPN-1x", "--url", "{address}/none.pth"], "answered 404"),
    (["fetch", "R50-FPN-1x", "--url", "{address}/page.html"], "a web page instead of the file"),
    (["fetch", "R50-FPN-1x", "--url", "{address}/cut.pth"], "is not a readable torch file"),
    (["fetch", "R50-FPN-1x", "--url", "http://127.0.0.1:1/x.pth"], "cannot be reached"),
    (["fetch", "R50-FPN-1x", "--url", "nonsense"], "nonsense"),
    (["show", "nix"], "no checkpoint 'nix'"),
]


@pytest.mark.parametrize(("arguments", "message"), FAILURES)
def test_failures_are_one_message_and_exit_code_1(
    files: Path, address: str, tmp_path: Path, arguments: list[str], message: str
) -> None:
    command = [argument.format(files=files, address=address) for argument in arguments]
    result = run(*command, "--store", tmp_path)
    assert result.exit_code == 1, result.output
    assert result.stderr.count("Error: ") == 1
    assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "downloads"] == []


def test_a_refused_download_is_not_taken_for_the_file_next_time(address: str, files: Path, tmp_path: Path) -> None:
    arguments = ("fetch", "R50-FPN-1x", "--store", tmp_path, "--url")
    assert "not a readable" in run(*arguments, f"{address}/cut.pth").stderr
    # The second try fetches again, instead of reading the cut file once more.
    assert "answered 404" in run(*arguments, f"{address}/none.pth").stderr


def test_an_existing_name_is_kept_unless_forced(store: Path) -> None:
    result = run("fetch", "R50-FPN-3x", "--url", "http://127.0.0.1:1/x", "--store", store)
    assert result.exit_code == 1
    assert "add --force" in result.stderr


def test_a_missing_library_is_one_sentence(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingRequirementError("detectron2 is not installed; fix: run `make setup`.")

    monkeypatch.setattr(models_command, "require_model_libraries", missing)
    result = run("import", files / "output.pth", "--store", tmp_path)
    assert (result.exit_code, result.stderr) == (1, "Error: detectron2 is not installed; fix: run `make setup`.\n")
