"""deploy/, compose.yaml and Dockerfile.api: everything that can be checked without a cluster or Docker.

Kubernetes' own kinds are validated by the schemas that the package kubernetes-validate carries; KEDA's ScaledObject is
not among them and is checked by hand.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from backend.api.app import create_app
from backend.cli.main import COMMANDS
from backend.cli.operate.serve import serve as serve_command
from backend.processes.embedded_redis import free_port
from backend.processes.parent_death import ends_with_parent
from backend.queue.keys import INTERACTIVE_LANE, PREDICT_LANE, STATS
from backend.queue.recovery import Heartbeat
from backend.settings import Settings, known_variables
from tests.backend.bootstrap.locked_imports import locked, run_locked
from tests.backend.bootstrap.test_containers import ROOT, built, steps
from tests.support.service import wait_until
from tests.support.slow_clients import UNFINISHED, answers, connections, is_closed

pytestmark = pytest.mark.service

KUBERNETES = ROOT / "deploy" / "kubernetes"
Json = dict[str, Any]
OTHERS = {"keda.sh/v1alpha1", "kustomize.config.k8s.io/v1beta1"}
MANIFESTS: list[Json] = [
    document for file in sorted(KUBERNETES.glob("*.yaml")) for document in yaml.safe_load_all(file.read_text())
]


def of_kind(kind: str) -> dict[str, Json]:
    return {m["metadata"]["name"]: m for m in MANIFESTS if m["kind"] == kind}


def workloads() -> dict[str, Json]:
    return {**of_kind("Deployment"), **of_kind("StatefulSet")}


def pods() -> dict[str, Json]:
    return {name: m["spec"]["template"] for name, m in workloads().items()}


def claims_of(name: str) -> set[str]:
    """Names of the claims that each pod of a StatefulSet has for itself."""
    return {claim["metadata"]["name"] for claim in workloads()[name]["spec"].get("volumeClaimTemplates", ())}


@pytest.mark.parametrize(
    "manifest",
    [m for m in MANIFESTS if m["apiVersion"] not in OTHERS],
    ids=lambda m: f"{m['kind']}-{m['metadata']['name']}",
)
def test_manifests_fit_kubernetes_schemas(manifest):
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_the_schemas_refuse_what_is_wrong():
    wrong = {**of_kind("StatefulSet")["api"], "spec": {"replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


def test_kustomization_names_every_file_and_image():
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    files_of_generators = {
        entry.partition("=")[2] for generator in kustomization["configMapGenerator"] for entry in generator["files"]
    }
    files = {*kustomization["resources"], *files_of_generators, "kustomization.yaml"}
    assert files == {file.name for file in KUBERNETES.iterdir()}
    ours = {c["image"] for pod in pods().values() for c in pod["spec"]["containers"] if ":" not in c["image"]}
    assert ours == {image["name"] for image in kustomization["images"]}


def test_selectors_volumes_and_claims_meet():
    for name, workload in workloads().items():
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert workload["spec"]["selector"]["matchLabels"].items() <= labels.items(), name
        spec = workload["spec"]["template"]["spec"]
        volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
        mounts = {m["name"] for c in spec["containers"] for m in c.get("volumeMounts", ())}
        assert mounts == set(volumes) | claims_of(name), name
        claims = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
        assert claims <= set(of_kind("PersistentVolumeClaim"))
    assert {stateful["spec"]["serviceName"] for stateful in of_kind("StatefulSet").values()} <= set(of_kind("Service"))
    for scaler in (*of_kind("ScaledObject").values(), *of_kind("HorizontalPodAutoscaler").values()):
        target = scaler["spec"]["scaleTargetRef"]
        assert target["name"] in of_kind(target.get("kind", "Deployment"))
    for service in of_kind("Service").values():
        (pod,) = (p for p in pods().values() if service["spec"]["selector"].items() <= p["metadata"]["labels"].items())
        ports = {port["name"] for c in pod["spec"]["containers"] for port in c.get("ports", ())}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    names = ("worker", "interactive", "trainer")
    lanes = {of_kind("Deployment")[name]["spec"]["selector"]["matchLabels"]["lane"] for name in names}
    assert len(lanes) == len(names), "they must not adopt each other's pods"


def test_containers_have_probes_limits_and_no_more_rights_than_they_need():
    for name, pod in pods().items():
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        for container in pod["spec"]["containers"]:
            assert "memory" in container["resources"]["limits"]
            if name != "trainer":
                assert "livenessProbe" in container, name
    assert pods()["worker"]["spec"]["nodeSelector"]
    assert pods()["worker"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    grace_s = pods()["worker"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > Settings.model_fields["batch_timeout_s"].default


def test_commands_and_variables_exist():
    names = set(of_kind("ConfigMap")["transfiner"]["data"])
    for pod in pods().values():
        for container in pod["spec"]["containers"]:
            names |= {entry["name"] for entry in container.get("env", ())}
            if "transfiner" in container["image"]:
                assert container["args"][0] in COMMANDS
            for probe in ("startupProbe", "livenessProbe"):
                command = container.get(probe, {}).get("exec", {}).get("command", [])
                if command and command[0] == "transfiner":
                    assert command[1] in COMMANDS
    assert {name for name in names if name.startswith("TRANSFINER_")} <= known_variables()
    settings = of_kind("ConfigMap")["transfiner"]["data"]
    assert Settings(log_format=settings["TRANSFINER_LOG_FORMAT"])


def test_the_queue_s_password_is_a_secret_that_all_who_use_it_get():
    for name in ("api", "worker", "interactive", "trainer", "queue"):
        container = pods()[name]["spec"]["containers"][-1]
        variables = {entry["name"]: entry for entry in container["env"]}
        assert variables["QUEUE_PASSWORD"]["valueFrom"]["secretKeyRef"]["name"] == "transfiner"
        if name != "queue":
            # Kubernetes puts a variable that stands before it in place of $(...).
            assert list(variables).index("QUEUE_PASSWORD") < list(variables).index("TRANSFINER_REDIS_URL")
            url = variables["TRANSFINER_REDIS_URL"]["value"].replace("$(QUEUE_PASSWORD)", "secret")
            assert Settings(redis_url=url).redis_url == "redis://:secret@queue:6379/0"
    for scaler in of_kind("ScaledObject").values():
        assert {trigger["metadata"]["passwordFromEnv"] for trigger in scaler["spec"]["triggers"]} == {"QUEUE_PASSWORD"}


@pytest.mark.parametrize(("name", "lane"), [("worker", PREDICT_LANE), ("interactive", INTERACTIVE_LANE)])
def test_workers_scale_with_their_lane_of_the_queue(name, lane):
    """KEDA's ScaledObject by hand: required fields, and lists by the names that the queue library gives them."""
    scaler = of_kind("ScaledObject")[name]["spec"]
    assert scaler["scaleTargetRef"]["name"] == name
    assert 0 <= scaler["minReplicaCount"] < scaler["maxReplicaCount"]
    (trigger,) = scaler["triggers"]
    assert trigger["type"] == "redis"
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    host, port = trigger["metadata"]["address"].split(":")
    assert host.partition(".")[0] in of_kind("Service")
    assert int(port) == of_kind("Service")["queue"]["spec"]["ports"][0]["port"]
    assert trigger["metadata"]["listName"] == lane
    assert "replicas" not in of_kind("Deployment")[name]["spec"], "the autoscaler's business"


DASHBOARD: Json = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "transfiner.json").read_text())


def test_the_dashboard_asks_only_for_figures_that_there_are(settings, redis):
    """Every metric of every panel is in /metrics of a service with a worker, with the labels that panels group by."""
    facts = {
        "version": "v",
        "memory_mib": 7,
        "gpu_memory_mib": 3,
        "models": [{"version": "v", "mib": 2, "device": "cpu"}],
    }
    Heartbeat(redis, "somebody", lost_after_s=60).beat(facts)
    redis.hset(STATS, "stage_model", "1.5")
    client = create_app(settings).test_client()
    client.get("/health")
    families = list(text_string_to_metric_families(client.get("/metrics").text))
    samples = {sample.name: set(sample.labels) for family in families for sample in family.samples}
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    for expression in expressions:
        names = re.findall(r"transfiner_\w+", expression)
        assert names
        assert set(names) <= set(samples), expression
        for labels in re.findall(r"by \(([^)]*)\)", expression):
            assert set(labels.replace(" ", "").split(",")) <= samples[names[0]] | {"le"}, expression
    assert {"transfiner_queue_depth", "transfiner_stage_seconds_total", "transfiner_worker_gpu_memory_bytes"} <= {
        name for expression in expressions for name in re.findall(r"transfiner_\w+", expression)
    }


def test_the_dashboard_s_panels_have_their_own_place():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for first, second in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        apart = first["x"] + first["w"] <= second["x"] or second["x"] + second["w"] <= first["x"]
        assert apart or first["y"] + first["h"] <= second["y"] or second["y"] + second["h"] <= first["y"]
    assert all(0 <= panel["gridPos"]["x"] <= 24 - panel["gridPos"]["w"] for panel in panels)


def test_figures_of_compose_are_scraped_and_shown():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    (job,) = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())["scrape_configs"]
    (target,) = job["dns_sd_configs"]
    assert target["names"] == services["api"]["networks"]["front"]["aliases"]
    assert target["port"] == Settings.model_fields["port"].default
    for service in ("prometheus", "grafana"):
        for volume in services[service]["volumes"]:
            assert (ROOT / volume.split(":")[0]).exists()
    source = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    gpus = [
        w["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        for n, w in services.items()
        if re.fullmatch(r"worker(-\d)?", n)
    ]
    assert sorted(gpus) == [["0"], ["1"], ["2"], ["3"]], "a worker for each GPU"


def test_the_api_image_has_no_torch_and_needs_none(tmp_path: Path) -> None:
    """The process of the image's files, with everything forbidden that its lock does not name."""
    folder = built(tmp_path, dockerfile="Dockerfile.api")
    lock = folder / "requirements" / "api.txt"
    assert not locked(lock) & {"torch", "torchvision", "scipy", "scikit-image", "matplotlib", "pycocotools"}
    question = """
import sys
from backend.cli.operate.serve import serve_http
from backend.api.http_server import HttpServer
from backend.api.app import create_app
from backend.settings import Settings
client = create_app(Settings(redis_url="redis://127.0.0.1:1/0")).test_client()
answers = {path: client.get(path).status_code for path in ("/health", "/status", "/versions", "/openapi.json")}
answers["/webhook"] = client.post("/webhook", json={"action": "PROJECT_UPDATED", "project": {"id": 1}}).status_code
print(answers, "torch" in sys.modules)
"""
    result = run_locked(question, lock, folder)
    assert result.returncode == 0, result.stderr
    expected = {"/health": 200, "/status": 200, "/versions": 200, "/openapi.json": 200, "/webhook": 200}
    assert result.stdout.strip() == f"{expected} False"


def test_the_api_image_starts_the_api():
    instructions = dict(steps("Dockerfile.api"))
    assert json.loads(instructions["ENTRYPOINT"]) == ["python", "-m", "backend.cli"]
    assert json.loads(instructions["CMD"]) == ["api"]
    locks = [(ROOT / "requirements" / f"{name}.txt").read_text().splitlines() for name in ("api", "app")]
    assert set(locks[0]) <= set(locks[1]) | {line for line in locks[0] if ";" in line}, "the same versions"


def test_a_worker_s_probe(settings, redis):
    from click.testing import CliRunner

    from backend.cli.operate.serve import worker_alive

    def probe(*options: str) -> int:
        return CliRunner().invoke(worker_alive, [*options]).exit_code

    ours = ("--redis-url", settings.redis_url, "--host", "pod-1")
    assert probe(*ours) == 1
    Heartbeat(redis, "somebody", lost_after_s=60).beat({"host": "pod-1"})
    assert probe(*ours) == 0
    assert probe("--redis-url", settings.redis_url, "--host", "pod-2") == 1
    assert probe("--redis-url", "redis://127.0.0.1:1/0") == 0, "the worker is not to blame"


def test_the_front_server_stands_before_the_api_and_nothing_else_does():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    host, _, port = services["front"]["environment"]["API"].partition(":")
    assert host in services["api"]["networks"]["front"]["aliases"]
    assert int(port) == Settings.model_fields["port"].default
    assert "default" not in services["api"]["networks"], "Label Studio reaches it through the front server"
    assert services["front"]["networks"]["default"]["aliases"] == ["api"]
    front, api = pods()["api"]["spec"]["containers"]
    variables = {entry["name"]: entry.get("value") for entry in api["env"]}
    asked = {entry["name"]: entry.get("value") for entry in front["env"]}
    assert asked["API"] == f"{variables['TRANSFINER_HOST']}:{variables['TRANSFINER_PORT']}"
    assert "ports" not in api


def test_compose_and_kubernetes_state_the_same_memory_for_each_part():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert all("mem_limit" in service for service in services.values())
    containers = {c["name"]: c for pod in pods().values() for c in pod["spec"]["containers"]}
    for name, container in containers.items():
        memory = container["resources"]["limits"]["memory"].lower().removesuffix("i")
        assert services[{"valkey": "queue"}.get(name, name)]["mem_limit"] == memory, name
    assert services["worker-cpu"]["mem_limit"] == services["worker"]["mem_limit"]


def test_compose_kubernetes_and_serve_state_the_memory_that_was_measured():
    page = (ROOT / "docs" / "operate.md").read_text()
    rows = re.findall(
        r"^\| (80 labels|1,203 labels|40 MP)[^|]*\| (\d+) \| ([\d,]+)[^|]*\| (\d+) \|$", page, re.MULTILINE
    )
    figures = {case: [int(figure.replace(",", "")) for figure in row] for case, *row in rows}
    api, queue = (max(figures[case][place] for case in ("80 labels", "1,203 labels")) for place in (0, 2))
    worker = figures["40 MP"][1]
    for text in (
        (ROOT / "compose.yaml").read_text(),
        (KUBERNETES / "kustomization.yaml").read_text(),
        serve_command.help or "",
    ):
        words = " ".join(text.replace("#", " ").split())
        for said in (f"API {api} MiB", f"queue server {queue} MiB", f"{worker / 1024:.1f} GiB", "1,203", "5,000 tasks"):
            assert said in words
    limits = {
        c["name"]: c["resources"]["limits"]["memory"] for pod in pods().values() for c in pod["spec"]["containers"]
    }
    assert (limits["api"], limits["worker"], limits["valkey"]) == ("512Mi", "8Gi", "2Gi")
    assert 2 * api < 512
    assert 2 * worker < 8192
    assert 2 * queue < 2048


# Where each part writes: fields of the settings.
WRITES = {
    "api": ("promises_folder", "registry", "registry_cache"),
    "worker": ("registry_cache", "image_cache"),
    "interactive": ("image_cache",),
    "trainer": ("registry", "registry_cache", "learning_folder", "image_cache"),
}


def image_folders(dockerfile: str) -> set[Path]:
    """Folders of the image that the user whom it runs as owns."""
    text = (ROOT / dockerfile).read_text()
    (user,) = re.findall(r"^USER (\w+)$", text, re.MULTILINE)
    (owned,) = re.findall(rf"chown -R {user} (.+)$", text, re.MULTILINE)
    return {Path("/app") / folder for folder in owned.split()}


def written_folders(part: str, variables: Json) -> dict[str, Path]:
    """Where a part writes, as its container's variables say."""
    folders = {field: variables.get(f"TRANSFINER_{field.upper()}") for field in WRITES[part]}
    settings = Settings(**{field: value for field, value in folders.items() if value is not None})
    places = {field: str(getattr(settings, field)) for field in WRITES[part]}
    return {field: Path("/app") / place for field, place in places.items() if place}


@pytest.mark.parametrize("part", WRITES)
def test_each_part_may_write_where_it_writes(part):
    """In an image nobody but root owns what no step has given away; a new volume gets the owner of what it covers."""
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"][part]
    dockerfile = "Dockerfile.api" if part == "api" else "Dockerfile"
    own = image_folders(dockerfile)
    mounts = [Path(volume.split(":")[1]) for volume in service["volumes"]]
    assert all(any(mount.is_relative_to(folder) for folder in own) for mount in mounts)
    container = next(c for pod in pods().values() for c in pod["spec"]["containers"] if c["name"] == part)
    mount_paths = [Path(mount["mountPath"]) for mount in container.get("volumeMounts", ())]
    config = of_kind("ConfigMap")["transfiner"]["data"]
    in_kubernetes = {**config, **{entry["name"]: entry.get("value") for entry in container["env"]}}
    in_compose = {name: value for name, value in service["environment"].items() if "$" not in value}
    for registry in ("", "/models/registry"):
        variables = {**in_compose, "TRANSFINER_REGISTRY": registry}
        for field, place in written_folders(part, variables).items():
            assert any(place.is_relative_to(folder) for folder in own), field
    for field, place in written_folders(part, in_kubernetes).items():
        assert any(place.is_relative_to(folder) for folder in (*own, *mount_paths)), field


def test_what_is_promised_outlives_containers_and_pods():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    place = str(Path("/app") / Settings.model_fields["promises_folder"].default)
    assert f"promises:{place}" in services["api"]["volumes"]
    assert "queue:/data" in services["queue"]["volumes"]
    for name, place in (("api", "/promises"), ("queue", "/data")):
        container = pods()[name]["spec"]["containers"][-1]
        (volume,) = (mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == place)
        assert volume in claims_of(name)
    variables = {entry["name"]: entry.get("value") for entry in pods()["api"]["spec"]["containers"][-1]["env"]}
    assert variables["TRANSFINER_PROMISES_FOLDER"] == "/promises"


def test_the_front_server_takes_bodies_as_large_as_the_api():
    (limit,) = re.findall(r"client_max_body_size (\d+)m;", (KUBERNETES / "nginx.conf").read_text())
    assert int(limit) == Settings.model_fields["max_request_mib"].default


@pytest.fixture
def front(settings, serve, tmp_path) -> Iterator[str]:
    """The address of nginx with deploy/kubernetes/nginx.conf; its times are shorter."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed (apt-get install nginx-light)")
    port = free_port()
    site = (KUBERNETES / "nginx.conf").read_text().replace("listen 9090", f"listen 127.0.0.1:{port}")
    site = site.replace("${API}", urlsplit(serve(settings)).netloc).replace("${NGINX_LOCAL_RESOLVERS}", "127.0.0.1")
    site = site.replace("10s;", "2s;").replace("clients 128", "clients 20")
    places = "".join(
        f"{name}_temp_path {tmp_path}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/errors;\n"
        f"events {{ worker_connections 1024; }}\nhttp {{\n{places}{site}}}\n"
    )
    preexec = ends_with_parent(signal.SIGTERM)
    command = [program, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", str(tmp_path / "errors")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=preexec) as nginx:
        try:
            wait_until(lambda: nginx.poll() is not None or answers(port))
            assert nginx.poll() is None, nginx.stderr.read().decode()
            yield f"http://127.0.0.1:{port}"
        finally:
            nginx.terminate()


def test_the_front_server_cuts_slow_clients_off_and_gives_each_a_share(front):
    with connections(front, 200, source="127.0.0.2") as clients:
        for number, client in enumerate(clients):
            client.sendall(list(UNFINISHED.values())[number % len(UNFINISHED)])
        for _ in range(5):
            assert requests.get(f"{front}/health", timeout=60).json()["status"] == "UP"
        wait_until(lambda: all(map(is_closed, clients)))
    assert requests.post(f"{front}/jobs/cancel", timeout=60).status_code == 403, "it says for whom it asks"
    with connections(front, 21, source="127.0.0.3") as clients:
        for client in clients:
            client.sendall(UNFINISHED["a body that never comes"])
        wait_until(lambda: any(b" 429 " in client.recv(4096) for client in select.select(clients, [], [], 0)[0]))
