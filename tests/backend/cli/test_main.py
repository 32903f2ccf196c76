"""What an API process carries, and what the command line promises before anything heavy is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from backend.cli import main as cli
from backend.errors import StartError
from backend.learning.steps import check_step_options
from backend.settings import Settings, known_variables, load_settings, local_url, unknown_variables
from tests.support.service import ROOT, predict_body, setup_body, tasks

pytestmark = pytest.mark.service

USE_THE_API = """
import json, sys
from pathlib import Path
from backend.api.app import create_app
from backend.settings import Settings
app = create_app(Settings())
app.extensions["transfiner"].queue.is_stopping = True
client = app.test_client()
setup, predict = json.loads(sys.stdin.read())
assert client.post("/setup", json=setup).status_code == 200
assert client.post("/predict", json=predict).get_json() == {"results": []}
for path in ("/health", "/versions", "/jobs", "/metrics", "/ready"):
    client.get(path)
names = ("torch", "torchvision", "detectron2", "shapely", "scipy", "label_studio_sdk")
heavy = [name for name in names if name in sys.modules]
# Not getrusage: its peak counts the parent's memory as well, and the parent may be a pytest with torch in it.
peak_kib = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
print(json.dumps({"heavy": heavy, "memory_mib": peak_kib / 1024}))
"""


def test_the_api_never_imports_torch_and_stays_small(settings):
    environment = {**os.environ, "TRANSFINER_REDIS_URL": settings.redis_url, "TRANSFINER_MODEL": str(settings.model)}
    bodies = [setup_body("http://ls:8080", "x"), predict_body(tasks(2), project="7.1795339022")]
    result = subprocess.run(
        [sys.executable, "-c", USE_THE_API],
        input=json.dumps(bodies),
        text=True,
        env=environment,
        capture_output=True,
        check=True,
        cwd=ROOT,
    )
    facts = json.loads(result.stdout)
    assert facts["heavy"] == []
    assert facts["memory_mib"] < 150


def test_help_lists_the_commands_without_importing_them():
    script = "import sys; from backend.cli.main import cli; cli(['--help'], standalone_mode=False)"
    script += "; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    for name in ("serve", "api", "worker", "doctor"):
        assert f"\n  {name} " in result.stdout
    assert result.stdout.endswith("False\n")


@pytest.mark.parametrize(("missing", "fix"), [("torch", "make setup"), ("somepackage", "somepackage")])
def test_a_missing_library_is_one_sentence_with_the_fix(monkeypatch, missing, fix):
    def broken(_name: str) -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(cli.importlib, "import_module", broken)
    result = CliRunner().invoke(cli.cli, ["worker"])
    assert result.exit_code == 1
    assert missing in result.output
    assert fix in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["serve", "api", "worker", "doctor"])
def test_every_command_shows_an_example(command):
    assert f"Example: transfiner {command}" in CliRunner().invoke(cli.cli, [command, "--help"]).output


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("TRANSFINER_PORT", "none", "TRANSFINER_PORT"),
        ("TRANSFINER_PORT", "70000", "TRANSFINER_PORT"),
        ("TRANSFINER_SCORE_THRESHOLD", "1.5", "TRANSFINER_SCORE_THRESHOLD"),
        ("TRANSFINER_REDIS_URL", "localhost:6379", "redis://"),
        ("LABEL_STUDIO_URL", "localhost:8080", "http://"),
        ("LABEL_STUDIO_API_KEY", "secret-key", "LABEL_STUDIO_URL"),
        ("TRANSFINER_BASIC_AUTH_USER", "ls", "TRANSFINER_BASIC_AUTH_PASSWORD"),
        ("TRANSFINER_LOG_LEVEL", "LOUD", "TRANSFINER_LOG_LEVEL is 'LOUD'"),
        ("TRANSFINER_MAX_VERTICES", "2", "TRANSFINER_MAX_VERTICES is '2': expected 0 (no limit) or at least 3"),
        ("TRANSFINER_GATE_RULES", "[1]", "TRANSFINER_GATE_RULES"),
    ],
)
def test_a_wrong_setting_names_its_variable(settings, monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    with pytest.raises(StartError, match="Wrong settings") as caught:
        load_settings()
    assert says in str(caught.value)
    assert "secret-key" not in str(caught.value)


def test_a_setting_that_is_no_json_is_shown_with_an_example(settings, monkeypatch):
    monkeypatch.setenv("TRANSFINER_GATE_RULES", "{bad")
    with pytest.raises(StartError, match=r"TRANSFINER_GATE_RULES is '\{bad', expected JSON.*\{\"confidence\": 0.9\}"):
        load_settings()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"finetune_options": {"iteratons": 4}},
            "TRANSFINER_FINETUNE_OPTIONS has 'iteratons', expected some of preset,",
        ),
        ({"finetune_options": {"batch_size": 0}}, "TRANSFINER_FINETUNE_OPTIONS: batch_size is 0"),
        ({"gate_rules": {"confidense": 0.9}}, "TRANSFINER_GATE_RULES: the gate has no rule 'confidense'"),
    ],
)
def test_options_of_a_round_are_checked_when_the_service_starts(settings, options, says):
    """A round would notice them after its snapshot or its training."""
    with pytest.raises(StartError) as caught:
        check_step_options(settings.model_copy(update=options))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:9090"),
        ("::", "http://[::1]:9090"),
        ("::1", "http://[::1]:9090"),
        ("box.local", "http://box.local:9090"),
    ],
)
def test_an_api_is_reached_at_the_address_it_listens_on(host, url):
    assert local_url(host, 9090) == url


def test_every_setting_is_read_from_its_variable(settings, monkeypatch):
    monkeypatch.setenv("TRANSFINER_MAX_BATCH", "7")
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://ls:8080/")
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "key")
    loaded = load_settings(port=1234, host=None)
    assert (loaded.max_batch, loaded.port, loaded.host) == (7, 1234, "127.0.0.1")
    assert loaded.label_studio_url == "http://ls:8080"
    assert "key" not in repr(loaded.label_studio_api_key)


def test_misspelt_variables_are_noticed():
    variables = {"TRANSFINER_MAX_BACH": "3", "TRANSFINER_SHARED_DATA": "x", "PATH": "/", "TRANSFINER_HOST": "::"}
    assert unknown_variables(variables) == {"TRANSFINER_MAX_BACH": "TRANSFINER_MAX_BATCH"}
    assert len(known_variables()) == len(Settings.model_fields)


def test_a_process_that_ends_with_parent_does_so_when_we_are_killed(tmp_path):
    """Measuring and finetuning of a rehearsal used to go on for minutes after its kill -9."""
    sleeper = "import time; print('up', flush=True); time.sleep(10); print('still there', flush=True)"
    starter = (
        "import subprocess, sys; from backend.processes.parent_death import ends_with_parent;"
        f"subprocess.run([sys.executable, '-c', {sleeper!r}], preexec_fn=ends_with_parent())"
    )
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        process.kill()
        # The pipe is closed only when the sleeper, who holds its other end, has ended, too.
        assert process.stdout.read() == ""
