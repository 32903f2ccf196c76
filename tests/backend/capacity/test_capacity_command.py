"""`transfiner benchmark capacity` from figures to report, and that the figures can be measured at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from backend.benchmark_command import benchmark
from backend.capacity.arrivals import FLAT, Load
from backend.capacity.figures import Figures, read_figures
from backend.capacity.limits import API, LABEL_STUDIO, QUEUE, STORAGE, account
from backend.capacity.measuring import Measuring, Sizes
from backend.capacity.running import profile
from backend.capacity.sizing import Sized
from backend.capacity.waits import Waits
from backend.errors import StartError
from backend.settings import Settings

BATCH = {"images_s": 0.01, "model_s": 0.4, "regions_s": 0.05, "request_s": 0.5, "processor_s": 0.4}
COST = {"api": 2.0, "worker": 10.0, "queue_server": 0.5}
LABEL_STUDIO_FIGURES = {
    "version": "1.23.2", "database": "SQLite", "tasks": 100, "regions_a_prediction": 4, "tasks_imported_a_second": 200,
    "uploads_a_second": 10, "predictions_imported_a_second": 400, "predictions_retrieved_a_second": 5,
    "processor_ms": {"predictions_retrieved": 100},
    "bytes_a_task": 500, "bytes_a_prediction": 1500,
}  # fmt: skip
FIGURES = {
    "taken": "2026-01-01 00:00 UTC",
    "machine": {"processor": "abacus", "cores": 2, "memory_gib": 8, "python": "3.11", "device": "cpu",
                "load_before": 0},
    "model": "stub 1", "pictures": "squares", "image_bytes": 200_000,
    "batches": {"1": [BATCH], "4": [{**BATCH, "model_s": 1.6}]},
    "together": {"tasks": 8, "max_batch": 4, "tasks_a_second": 1.8},
    "queue": {"tasks": 100, "tasks_a_second": 80, "bulk": COST, "single": {**COST, "api": 6.0},
              "bytes_waiting": 2000, "bytes_finished": 3000},
    "label_studio": LABEL_STUDIO_FIGURES,
}  # fmt: skip
WAITS = Waits(100, 0.1, 1.0, 2.0, 1.96, None, 0.8, 5.0, 1000, 2.0)


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(FIGURES))
    return path


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretches of seconds; what is simulated is shorter, nothing else."""
    monkeypatch.setattr("backend.capacity.sizing.FEWEST_TASKS", 2000)
    monkeypatch.setattr("backend.capacity.sizing.PEAK_TASKS", 4000)


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(benchmark, ["capacity", *map(str, arguments)])
    error = result.exception
    return result.exit_code, result.stdout, str(error) if isinstance(error, StartError) else result.stderr


def test_a_report_from_figures_of_another_machine(figures, tmp_path):
    asked = [
        "--figures",
        figures,
        "--images-a-day",
        1000,
        "--images-a-day",
        400_000,
        "--out",
        tmp_path / "out",
    ]
    code, text, heard = run(*asked, "--json")
    assert code == 0, heard
    report = json.loads(text)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    small, large = report["loads"]
    assert (small["workers"], small["simulated"]) == (1, "2 whole days")
    # 14.4 tasks a second at the peak, 0.4 s and a slowing down each: at least seven workers have something to do.
    assert 7 <= large["workers"] <= 10
    assert large["peak"]["wait_p95_s"] <= 2 < large["one_worker_fewer"]["wait_p95_s"]
    assert large["day"] is None
    assert "of the peak" in large["simulated"]
    assert (tmp_path / "out" / "capacity.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "report.md").read_text()
    assert "400,000 images a day" in page
    assert "load average 0 before" in page
    again = json.loads(run(*asked, "--json")[1])
    assert again == report


def test_an_assumed_network_is_marked_as_such(figures, tmp_path):
    asked = ["--figures", figures, "--images-a-day", 10_000, "--out", tmp_path]
    slow, fast = (run(*asked, *more) for more in ([], ["--images-per-second", 50]))
    assert "Assumed, not measured" not in slow[1]
    assert "**Assumed, not measured**: a network that takes 50 images a second." in fast[1]
    assert "| 10,000 | 0.361 | **1** |" in fast[1]


def test_processor_time_stands_for_seconds_when_asked(figures, tmp_path):
    asked = ["--figures", figures, "--images-a-day", 1000, "--out", tmp_path, "--processor-time"]
    code, text, heard = run(*asked)
    assert code == 0, heard
    assert "**Estimated**: the machine was busy" in text
    assert "beside 10, if all come this way" in text
    assert "- check:" not in text


def test_what_was_not_measured_is_said_and_never_gives_first(tmp_path):
    path = tmp_path / "some.json"
    path.write_text(json.dumps({**FIGURES, "label_studio": None, "queue": None, "together": None}))
    code, text, heard = run("--figures", path, "--images-a-day", 1000, "--out", tmp_path, "--disk-tb", 1)
    assert code == 0, heard
    assert "Label Studio: not measured" in text
    assert "| Label Studio: import of tasks | not measured | not measured |" in text
    assert "Gives first: **storage: disk in a year**" in text


def test_limits_computed_by_hand():
    load = Load(864_000, FLAT)  # ten a second
    sized = Sized(load, "", 5, WAITS, None, {})
    found = account(sized, Figures.model_validate(FIGURES), Settings(api_threads=48, result_ttl_s=3600), 1e12)
    shares = {(one.part, one.name): one.share for one in found.limits}
    assert shares == {
        # 0.04 s beside the stages: 10 a second, 2 s each, 40 places
        (API, "requests waiting at a time"): pytest.approx(0.5),
        (API, "processor"): pytest.approx(0.06),
        (QUEUE, "processor"): pytest.approx(0.005),
        (QUEUE, "memory"): pytest.approx((36_000 * 3000 + 1000 * 2000) / 2**30),
        ("worker", "queue, images, outlines"): pytest.approx(2 / 80),
        (LABEL_STUDIO, "storing what it asks for"): pytest.approx(2),
        (LABEL_STUDIO, "bulk import of predictions"): pytest.approx(0.025),
        (LABEL_STUDIO, "import of tasks"): pytest.approx(0.05),
        (LABEL_STUDIO, "upload of images"): pytest.approx(1),
        (STORAGE, "disk in a year"): pytest.approx(864_000 * 365 * 202_000 / 1e12),
    }
    assert [one.share for one in found.limits] == sorted(shares.values(), reverse=True)
    assert found.first
    assert found.first.part == STORAGE
    by_name = {one.name: one for one in found.limits}
    assert by_name["storing what it asks for"].instances == 3
    assert by_name["storing what it asks for"].full_at(864_000) == pytest.approx(432_000)
    assert found.storage
    assert found.storage.database == pytest.approx(864_000 * 365 * 2000)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--max-batch", 8], "the largest measured were of 4"),
        (["--profile", "1,2,3"], "neither office nor flat nor 24 weights"),
        (["--profile", ",".join(["nan"] * 24)], "24 weights"),
        (["--bulk-share", 0.999, "--images-a-day", 1], "no single task arrives"),
        (["--images-a-day", 0], "0 is not in the range"),
        (["--target", 0.0001, "--profile", "flat", "--images-a-day", 10], ""),
    ],
)
def test_errors_say_what_was_expected(figures, tmp_path, arguments, says):
    code, text, heard = run("--figures", figures, "--out", tmp_path, *arguments)
    assert (code != 0) == bool(says), text
    assert says in heard


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no JSON", "the file: Invalid JSON"),
        (json.dumps({**FIGURES, "batches": {"1": [{**BATCH, "model_s": -1}]}}), "batches.1.0.model_s"),
        (json.dumps({**FIGURES, "speed": 3}), "speed: Extra inputs"),
    ],
)
def test_a_file_without_figures_is_refused(tmp_path, text, says):
    path = tmp_path / "figures.json"
    path.write_text(text)
    with pytest.raises(StartError, match="does not hold figures") as caught:
        read_figures(path)
    assert says in str(caught.value)


def test_figures_without_single_tasks_are_refused():
    found = Figures.model_validate({**FIGURES, "batches": {"4": [BATCH]}})
    with pytest.raises(StartError, match="batches of"):
        found.batch_times()


def test_a_day_of_ones_own():
    weights = profile(",".join(["0"] * 23 + ["2"]))
    assert Load(2400, weights).peak_rate == pytest.approx(2400 / 3600)


def test_the_service_is_measured():
    """The real processes with a model that costs nothing; a real Label Studio is for people to wait for."""
    heard: list[str] = []
    found = Measuring(None, Sizes((1, 2), 2, 4, 12, 10, 10), with_label_studio=False, told=heard.append).run()
    assert {size: len(rows) for size, rows in found.batches.items()} == {1: 2, 2: 2}
    assert all(0 < one.images_s < one.request_s for rows in found.batches.values() for one in rows)
    assert found.together
    assert found.together.tasks_a_second > 0
    assert found.queue
    assert 100 < found.queue.bytes_finished < 100_000
    assert 100 < found.queue.bytes_waiting < 100_000
    assert found.not_measured == {"label_studio": "left out (--no-label-studio)"}
    assert found.machine.device == "cpu"
    assert Figures.model_validate_json(found.model_dump_json()) == found
    assert heard[0] == "starting the service"
