"""The two virtual environments, ours and one for Label Studio, whose pins contradict ours; and Chromium, for tests."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .checks import OLDEST_WITHOUT_WHEELS, SetupError, check_compiler, check_disk, check_venv, explain_failure
from .running import run_visibly

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
DETECTRON2_LOCK = REQUIREMENTS / "detectron2.txt"
UV = "uv==0.13.9"  # as requirements/dev.txt
PIP_ENVIRONMENT = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONUNBUFFERED": "1"}
# uv does not read pip's configuration, where people name their mirror, so it is passed on.
PIP_TO_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
}
# uv's own switch; with a short timeout, since the index of those builds may not answer.
CPU_BUILD = {"UV_TORCH_BACKEND": "cpu", "UV_HTTP_TIMEOUT": "20", "UV_HTTP_RETRIES": "1"}
GPU_ONLY = ("cuda-", "nvidia-", "triton=")
DRIVER = ("/dev/nvidiactl", "/proc/driver/nvidia")
WHEEL_PYTHON = "3.10"  # the interpreter in the name of the detectron2 wheel, whose Python code runs on any
RECIPE = "3"  # raise it when the steps below change, so that environments made by older steps are made again


@dataclass(frozen=True)
class Environment:
    """One virtual environment to be made.

    `name` also names its lock file and its stamp; sizes are those of a Linux GPU build, the largest.
    """

    name: str
    folder: Path
    installed_gib: float
    download_gib: float
    with_project: bool = True  # our package and detectron2 belong in it
    detectron2_source: str = ""  # an upstream checkout or URL instead of the locked wheel

    @property
    def lock(self) -> Path:
        return REQUIREMENTS / f"{self.name}.txt"

    @property
    def stamp(self) -> Path:
        return self.folder / f".{self.name}.installed"

    @property
    def python(self) -> Path:
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def log(self) -> Path:
        return ROOT / "var" / "log" / f"setup-{self.name}.log"

    def digest(self) -> str:
        """Content of the stamp of a finished environment: a digest of its locks, its Python and the steps."""
        locks = self.lock.read_bytes() + (DETECTRON2_LOCK.read_bytes() if self.with_project else b"")
        identity = f"{RECIPE} {sys.version_info[:2]} {self.detectron2_source} {UV} ".encode()
        return hashlib.sha256(identity + locks).hexdigest()

    def is_ready(self) -> bool:
        """Whether the finished environment on disk is the one that the lock files describe."""
        return self.stamp.is_file() and self.stamp.read_text() == self.digest() and self.python.exists()


def application(detectron2_source: str = "") -> Environment:
    """The environment of `serve` and `demo`."""
    return Environment("app", ROOT / ".venv", 7.0, 3.0, detectron2_source=detectron2_source)


def development(detectron2_source: str = "") -> Environment:
    """The same folder with the tools of tests and lint on top; its lock contains the application's."""
    return Environment("dev", ROOT / ".venv", 7.5, 3.2, detectron2_source=detectron2_source)


def label_studio() -> Environment:
    """A real Label Studio, for the demo and the end-to-end test."""
    return Environment("label-studio", ROOT / ".venv-label-studio", 1.2, 0.4, with_project=False)


def prepare(environment: Environment) -> None:
    """Install `environment` unless its stamp is up to date; raises SetupError with the fix."""
    if environment.is_ready():
        return
    check_venv()
    if not environment.python.exists() or not any(environment.folder.glob(".*.installed")):
        check_disk(ROOT, environment.installed_gib, environment.download_gib)
    if not environment.with_project and sys.version_info[:2] >= OLDEST_WITHOUT_WHEELS:
        check_compiler("Label Studio's numpy has to be compiled for this Python")
    environment.stamp.unlink(missing_ok=True)
    _create(environment)
    # This small package also shows in seconds whether the registry can be reached, before gigabytes are downloaded.
    pip = ("-m", "pip", "install", "--quiet", "--retries", "2", "--timeout", "20", UV)
    _run(environment, "reaching the package registry", pip, PIP_ENVIRONMENT)
    if not (environment.with_project and is_without_gpu() and _install_cpu_build(environment)):
        _uv_install(environment, "Python packages", "-r", str(environment.lock))
    if environment.with_project:
        _install_detectron2(environment)
        _uv_install(environment, "transfiner", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
        _verify(environment)
    environment.stamp.write_text(environment.digest())


def _create(environment: Environment) -> None:
    """Make the virtual environment, anew when its interpreter is broken or another release than ours."""
    question = [str(environment.python), "-c", "import sys; print(*sys.version_info[:2])"]
    if environment.python.exists():
        answer = subprocess.run(question, capture_output=True, text=True, check=False)
        if answer.stdout.split() == [str(number) for number in sys.version_info[:2]]:
            return
        shutil.rmtree(environment.folder)
    command = [sys.executable, "-m", "venv", str(environment.folder)]
    status, output = run_visibly(command, title=f"creating {environment.folder.name}", log=environment.log)
    if status:
        raise SetupError(f"`{' '.join(command)}` ended with status {status}: {output.strip() or 'no message'}")


def is_without_gpu() -> bool:
    """Whether this is a Linux without an NVIDIA driver, where the GPU build would be 6 GB for nothing."""
    has_driver = any(Path(path).exists() for path in DRIVER) or shutil.which("nvidia-smi")
    return sys.platform == "linux" and not has_driver and "UV_TORCH_BACKEND" not in os.environ


def cpu_requirements(lock: str) -> str:
    """A lock without what only the GPU build of torch needs."""
    return "\n".join(line for line in lock.splitlines() if not line.startswith(GPU_ONLY)) + "\n"


def _install_cpu_build(environment: Environment) -> bool:
    """Try to install torch's CPU build, which is not in every registry; whether that worked."""
    requirements = environment.folder / "cpu-requirements.txt"
    requirements.write_text(cpu_requirements(environment.lock.read_text()))
    command = [str(environment.python), "-m", "uv", "pip", "install", "-r", str(requirements)]
    variables = {**uv_variables(environment.python), **CPU_BUILD}
    status, _ = run_visibly(
        command, title="Python packages, torch for CPUs", log=environment.log, environment=variables
    )
    if status:
        print("  torch's CPU build cannot be had from here: the registry's build follows", flush=True)
    return status == 0


def _run(environment: Environment, title: str, arguments: tuple[str, ...], variables: dict[str, str]) -> None:
    command = [str(environment.python), *arguments]
    status, output = run_visibly(command, title=title, log=environment.log, environment=variables)
    if status:
        raise SetupError(f"{title}: {explain_failure(output)}\n  (all of it: {environment.log})")


def _uv_install(environment: Environment, title: str, *arguments: str) -> None:
    _run(environment, title, ("-m", "uv", "pip", "install", *arguments), uv_variables(environment.python))


def uv_variables(python: Path) -> dict[str, str]:
    """Return uv's variables for the environment of `python`: pip's index, mirrors and certificates, as pip mixes them.

    Variables for uv in the caller's environment win.
    """
    variables = {"VIRTUAL_ENV": str(python.parent.parent), "UV_NO_PROGRESS": "1", "UV_LINK_MODE": "copy"}
    pip_settings = subprocess.run(
        [str(python), "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    # pip lists `:env:` first and lets it win; a stable sort puts it last.
    for line in sorted(pip_settings.stdout.splitlines(), key=lambda line: line.startswith(":env:")):
        key, _, value = line.partition("=")
        if (name := PIP_TO_UV.get(key.rsplit(".", 1)[-1])) and name not in os.environ:
            words = value.strip("'\"").replace("\\n", " ").split()
            variables[name] = ("," if name == "UV_FIND_LINKS" else " ").join(words)
    if "UV_INDEX" in variables:
        variables.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    return variables


def _install_detectron2(environment: Environment) -> None:
    if environment.detectron2_source:
        check_compiler("detectron2 is to be built from source")
        _uv_install(environment, "detectron2", "--no-deps", "--no-build-isolation", environment.detectron2_source)
        return
    question = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    packages = subprocess.check_output([str(environment.python), "-c", question], text=True).strip()
    wheel = ("--no-deps", "--python-version", WHEEL_PYTHON, "--only-binary", ":all:", "--target", packages)
    _uv_install(environment, "detectron2", *wheel, "-r", str(DETECTRON2_LOCK))


def _verify(environment: Environment) -> None:
    """Import the heavy packages once, so that a broken environment is noticed now and not at the first request."""
    imports = "import torch, torchvision, detectron2.modeling"
    command = [str(environment.python), "-W", "ignore", "-c", imports]
    status, output = run_visibly(command, title="importing torch and detectron2", log=environment.log)
    if status:
        last_line = output.strip().splitlines()[-1] if output.strip() else "no message"
        raise SetupError(f"the new environment does not import ({last_line}): `make clean setup` makes it anew")


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER_VARIABLE = "CHROMIUM_PATH"
BY_HAND = f"`sudo apt-get install chromium`, or set {BROWSER_VARIABLE} to the path of a Chromium or Chrome"
INSTALL_BROWSER = ["apt-get", "install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"]


def find_browser() -> str | None:
    """Find the browser to test with: that of the variable, else the first of the usual names, else None."""
    path = os.environ.get(BROWSER_VARIABLE)
    if path:
        return path if Path(path).is_file() else None
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def prepare_browser() -> str | None:
    """Install Chromium when there is none; returns a hint where that needs rights that we do not have."""
    if find_browser():
        return None
    if os.environ.get(BROWSER_VARIABLE):
        raise SetupError(f"{BROWSER_VARIABLE} names {os.environ[BROWSER_VARIABLE]!r}, which is not a file: {BY_HAND}")
    if not shutil.which("apt-get") or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return f"no Chromium found, so the browser part of the end-to-end test will be skipped: {BY_HAND}"
    for step in (["apt-get", "update"], INSTALL_BROWSER):
        status, output = run_visibly(
            step,
            title=f"Chromium ({step[1]})",
            log=ROOT / "var" / "log" / "setup-browser.log",
            environment={"DEBIAN_FRONTEND": "noninteractive"},
        )
        if status:
            last_line = output.strip().splitlines()[-1] if output.strip() else "no message"
            raise SetupError(f"`{' '.join(step)}` failed ({last_line}): {BY_HAND}")
    return None
