"""What is refused before torch is imported, each with value, expectation and fix; and what a running service tells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from backend.cli.main import SECTIONS, cli
from backend.errors import StartError
from backend.processes.running_service import announced, load_settings_of_running, running_services, state_folder
from backend.settings import Settings, load_settings
from model import errors
from tests.support.service import ROOT

ASK = "import sys; from backend.cli.main import main\ntry: main()\nfinally: print('torch' in sys.modules)"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["predict", "nosuch.jpg"], ["nosuch.jpg", "does not exist", "expected an image file", "looked for in"]),
        (["predict", "a.jpg", "--label-config", "nosuch.xml"], ["nosuch.xml", "does not exist"]),
        (["predict", "a.jpg", "--device", "gpu"], ["'gpu'", "expected auto, cpu, cuda"]),
        (["evaluate", "--weights", "scene-small"], ["scene-small", "expected a folder", "Did you mean scenes-small?"]),
        (["serve", "--model", "nosuch"], ["nosuch", "Known names: ", "scenes-small", "transfiner models list"]),
        (["serve", "--port", "99999"], ["99999", "65535"]),
        (["prdict", "a.jpg"], ["prdict", "predict"]),
        (["models", "lst"], ["lst", "list"]),
        (["serve", "--prot", "9090"], ["--prot", "--port"]),
    ],
)
def test_wrong_words_are_refused_before_torch_is_imported(words: list[str], says: list[str], tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", ASK, *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode != 0
    assert not [part for part in says if part not in result.stderr], result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout.endswith("False\n")


def test_a_mistyped_image_is_offered_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    result = CliRunner().invoke(cli, ["predict", str(tmp_path / "phto.jpg")])
    assert "Did you mean photo.jpg?" in result.output


def test_a_gpu_that_is_not_there_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "GPU_FILES", ())
    result = CliRunner().invoke(cli, ["worker", "--device", "cuda:1", "--redis-url", "redis://127.0.0.1:1/0"])
    assert result.exit_code == 2
    assert "no GPU driver; use --device cpu or auto" in result.output


@pytest.mark.parametrize("words", [["worker"], ["worker", "--queues", "train"], ["serve"]])
def test_without_its_queue_server_a_process_ends_with_what_was_tried(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFINER_REDIS_START_S", "0.2")
    monkeypatch.setenv("TRANSFINER_PORT", "0")
    result = CliRunner().invoke(cli, [*words, "--redis-url", "redis://127.0.0.1:1/0"])
    text = str(result.exception)
    assert "No queue server answers at 127.0.0.1:1" in text
    assert "attempts in 0.2 s" in text
    assert "correct --redis-url" in text


@pytest.mark.parametrize("url", ["ls:8080", "http://me:secret@ls", "http://ls\\x", "http://l s", "http://ls%2f"])
def test_an_address_of_label_studio_that_can_be_read_in_two_ways_is_refused_at_the_start(url: str) -> None:
    """Every task would fail for it."""
    with pytest.raises(StartError, match="expected http://host:port") as caught:
        load_settings(label_studio_url=url)
    assert "secret" not in str(caught.value)


def test_help_is_grouped_by_who_needs_it() -> None:
    text = CliRunner().invoke(cli, ["--help"]).output
    places = [text.index(f"{title}:") for title in SECTIONS]
    assert places == sorted(places)


def test_a_command_finds_the_running_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("TRANSFINER_REDIS_URL", raising=False)
    settings_of_service = Settings(
        redis_url="redis://:secret@127.0.0.1:7000/0", port=9999, registry=str(tmp_path / "registry")
    )
    assert load_settings_of_running().redis_url == ""
    with announced("service", settings_of_service):
        path = next(state_folder().glob("*.json"))
        assert path.stat().st_mode & 0o077 == 0
        settings = load_settings_of_running()
        assert (settings.redis_url, settings.port, settings.registry) == (
            settings_of_service.redis_url,
            9999,
            settings_of_service.registry,
        )
        error = capsys.readouterr().err
        assert "http://localhost:9999/status" in error
        assert "secret" not in error
        assert load_settings_of_running(registry="elsewhere").registry == "elsewhere"
        assert load_settings_of_running(redis_url="redis://other/0").port == Settings().port
        # A file of a process that was killed, whose number somebody else may have by now.
        stale = path.with_name("1.json")
        stale.write_text(path.read_text().replace(f'"pid": {os.getpid()}', '"pid": 1'))
        assert len(running_services()) == 1
        assert not stale.exists()
    assert running_services() == []
