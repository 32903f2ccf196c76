"""The wheel of this project in an environment of its own: it predicts and serves without the repository."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
import requests
from PIL import Image

from backend.processes.embedded_redis import free_port
from backend.processes.parent_death import ends_with_parent
from tests.support.service import ROOT, data_uri, predict_body, wait_until

PACKAGES = ("backend", "model", "training", "integration")
pytestmark = [pytest.mark.slow, pytest.mark.service]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network, by the build backend of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    # Built from links in another folder, for setuptools leaves folders beside the sources.
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements", *PACKAGES):
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignore, copy_function=os.symlink)
        else:
            (source / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "uv", "build", "--wheel", "--offline", "--no-build-isolation", "--python"]
    subprocess.run([*command, sys.executable, "--out-dir", folder, source], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`transfiner` of an environment with the wheel, and with the other packages of this one but not the repository."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "uv", "pip", "install", "--offline", "--no-deps", "--python", python, wheel]
    subprocess.run(install, check=True, capture_output=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A plain path: the hook of an editable installation, which leads to the repository, is not followed from here.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "transfiner"


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Variables without those that lead to the repository or a service of this machine."""
    own = ("TRANSFINER_", "LABEL_STUDIO_", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)}


@pytest.fixture
def served(program: Path, environment: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """The address of `transfiner serve`; every process ends with it."""
    port = free_port()
    command = [program, "serve", "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, preexec_fn=ends_with_parent())
    address = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        assert process.poll() is None, "transfiner serve ended"
        try:
            return requests.get(f"{address}/ready", timeout=5).ok
        except requests.RequestException:
            return False

    try:
        wait_until(is_ready, give_up_s=300)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0


def test_the_wheel_has_all_package_data_and_nothing_is_declared_in_vain(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package, patterns in package_data.items():
        folder = package.replace(".", "/")
        for pattern in patterns:
            assert any(fnmatch(name, f"{folder}/{pattern}") for name in names), f"no {folder}/{pattern} in the wheel"
    code = {path.suffix for path in map(Path, names)}
    assert {".py", ".lua", ".yaml", ".html", ".safetensors"} <= code
    in_repository = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert in_repository <= set(names)
    assert not [name for name in names if name.startswith("tests/")]


def test_it_predicts(program: Path, environment: dict[str, str], tmp_path: Path) -> None:
    Image.new("RGB", (96, 64), "white").save(tmp_path / "photo.png")
    command = [program, "predict", "photo.png", "--device", "cpu", "--format", "overlay", "--output", "out"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "out").iterdir())


def test_it_serves(served: str) -> None:
    body = predict_body([{"id": 1, "data": {"image": data_uri(96, 64)}}])
    body["label_config"] = body["label_config"].replace("gear", "person")  # a class of the model that serves by default
    answer = requests.post(f"{served}/predict", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    (prediction,) = answer.json()["results"]
    assert prediction["model_version"].startswith("photos")
    assert requests.get(f"{served}/openapi.json", timeout=20).json()["paths"]["/predict"]
    assert "Transfiner" in requests.get(f"{served}/status", timeout=20).text
