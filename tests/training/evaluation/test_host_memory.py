"""Freed memory is kept; counted in pages that the system had to hand out, never in seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

from training.evaluation import run as host_memory

pytestmark = pytest.mark.service

# Ten tensors of 48 MiB, one after the other, twice before and twice after; prints the pages that were new each time.
RUN = """
import resource, sys, torch
from training.evaluation.run import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(12 << 20).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
found = [faults(), faults()]
if not keep_freed_memory():
    sys.exit(3)
print(*found, faults(), faults())
"""


def test_a_freed_tensors_pages_are_used_again():
    process = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=False)
    if process.returncode == 3:
        pytest.skip("the C library is not glibc")
    assert process.returncode == 0, process.stderr
    _, faults_returning, _, faults_keeping = map(int, process.stdout.split())
    assert faults_returning > 10 * max(1, faults_keeping)


@pytest.mark.parametrize(("device", "library"), [("cuda", "glibc"), ("cuda:1", "glibc"), ("cpu", "")])
def test_elsewhere_nothing_changes(monkeypatch, device, library):
    monkeypatch.setattr("platform.libc_ver", lambda: (library, ""))
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: pytest.fail("the C library was asked"))
    assert host_memory.keep_freed_memory(device) is False
