"""Errors of images and of the model's environment; one sentence each, with the fix.

Free of torch and of image libraries, so that commands can ask before they import anything heavy.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

# Device files that GPU drivers create: NVIDIA's on Linux, in WSL and on Tegra, AMD's.
GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/nvhost-ctrl", "/dev/nvmap", "/dev/kfd")
SETUP = "run `make setup` in the project folder"
FIXES = {
    "torch": f"{SETUP}, or `pip install torch torchvision`",
    "torchvision": f"{SETUP}, or `pip install torchvision` in the version that matches the installed torch",
    "detectron2": f"{SETUP}; it is not on the package index under its own name",
    "safetensors": f"{SETUP}, or `pip install safetensors`",
}


class MissingRequirementError(ImportError):
    """A library the model needs is missing or broken; the message is one sentence with the fix."""


def require_model_libraries() -> None:
    """Check that torch, torchvision, detectron2 and safetensors can be imported.

    Raises:
        MissingRequirementError: naming the first one that cannot, why, and the fix.
    """
    for name, fix in FIXES.items():
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            absent = error.name or name
            problem = f"{name} is not installed" if absent == name else f"{name} needs {absent}, which is not installed"
            raise MissingRequirementError(f"{problem}; fix: {fix}.", name=absent) from error
        except (ImportError, OSError, RuntimeError) as error:
            # A torchvision built for another torch raises RuntimeError, a missing CUDA library OSError.
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise MissingRequirementError(f"{name} cannot be loaded ({reason}); fix: {fix}.", name=name) from error


def missing_gpu_reason(device: str) -> str:
    """Why `device` cannot be used, found out without torch; "" when it may be there.

    Checks the driver's files, so that a worker on a machine without a GPU ends at once.
    """
    if not device.startswith("cuda") or not sys.platform.startswith("linux"):
        return ""
    if any(Path(file).exists() for file in GPU_FILES):
        return ""
    return f"device is {device!r}, but this machine has no GPU driver; use --device cpu or auto."


class ImageError(ValueError):
    """An image that cannot be fetched or decoded. Fails its own task only.

    Attributes:
        what: what went wrong.
        value: the value in question, without secrets.
        expected: what would have been accepted.
        fix: what to do about it.
    """

    def __init__(self, what: str, *, value: object, expected: str, fix: str) -> None:
        super().__init__(f"{what}: got {value}, expected {expected}; {fix}")
        self.what = what
        self.value = str(value)
        self.expected = expected
        self.fix = fix

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.what, self.value, self.expected, self.fix)  # crosses process borders in job results


def _rebuild(what: str, value: str, expected: str, fix: str) -> ImageError:
    return ImageError(what, value=value, expected=expected, fix=fix)
