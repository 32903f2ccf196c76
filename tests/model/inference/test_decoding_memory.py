"""Memory of decoding: what the estimate says, what a process really takes, and the budget that threads share."""

from __future__ import annotations

import functools
import io
import json
import os
import random
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from backend.processes.parent_death import ends_with_parent
from integration.images.fetch import FetchSettings, ImageFetcher, decode_data_uri
from model.images import DEFAULT_BUDGET_BYTES, ImageError, MemoryBudget, decode_image, decoding_bytes
from tests.support.service import data_uri

pytestmark = pytest.mark.service
ROOT = Path(__file__).parents[3]
EDGE = 2000
# Beside the estimate: Python's own objects, and pages that the allocator keeps.
SLACK_BYTES = 12 << 20

# Reads file names, decodes each in this process, and writes the estimate and the highest memory above the start.
MEASURE = """
import io, json, sys
from PIL import Image
from model.images import decoding_bytes
from model.images import ImageError, decode_image

def kib(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])

for line in sys.stdin:
    data = open(line.strip(), "rb").read()
    with Image.open(io.BytesIO(data)) as image:
        estimate = decoding_bytes(image)
    open("/proc/self/clear_refs", "w").write("5")
    begin = kib("VmRSS")
    try:
        decode_image(data, name="x", max_pixels=10**9)
        error = ""
    except ImageError as failure:
        error = str(failure)
    print(json.dumps([estimate, (kib("VmHWM") - begin) * 1024, error]), flush=True)
"""


def saved(path: Path, mode: str, edge: int = EDGE, **options: object) -> None:
    arrays = {"F": np.float32, "I": np.int32, "I;16": np.uint16}
    image = (
        Image.fromarray(np.zeros((edge, edge), arrays[mode])) if mode in arrays else Image.new(mode, (edge, edge), 0)
    )
    image.save(path, **options)


def upright_later(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    saved(path, "RGB", exif=exif, compression="tiff_lzw")


def progressive_jpeg(path: Path, edge: int = EDGE) -> None:
    """A few hundred bytes that announce edge x edge pixels and end in their first scan."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG", progressive=True, subsampling=0)
    data = bytearray(buffer.getvalue()[:600])
    frame = data.index(b"\xff\xc2")
    data[frame + 5 : frame + 9] = edge.to_bytes(2, "big") * 2
    path.write_bytes(data)


def one_strip(path: Path, mode: str, edge: int = EDGE) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TiffImagePlugin, "STRIP_SIZE", 1 << 30)
        saved(path, mode, edge, compression="tiff_lzw")


def huge_tile(path: Path, edge: int = 4096) -> None:
    """A TIFF of 16 x 16 pixels in one tile of edge x edge."""
    tile = zlib.compress(bytes(edge**2))
    numbers = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: edge, 323: edge, 324: 0, 325: len(tile)}
    numbers[324] = 8 + 2 + 12 * len(numbers) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in numbers.items())
    path.write_bytes(struct.pack("<2sHIH", b"II", 42, 8, len(numbers)) + entries + bytes(4) + tile)


PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
CASES = {
    "progressive.jpg": lambda path: saved(path, "RGB", progressive=True, subsampling=0),
    "baseline.jpg": lambda path: saved(path, "RGB"),
    "gray.jpg": lambda path: saved(path, "L", progressive=True),
    "cmyk.jpg": lambda path: saved(path, "CMYK", progressive=True),
    "truncated.jpg": progressive_jpeg,
    **{f"{mode}.png".replace(";", ""): functools.partial(saved, mode=mode) for mode in PNG_MODES},
    **{f"{mode}.webp": functools.partial(saved, mode=mode) for mode in ("RGB", "RGBA")},
    **{f"{mode}.avif": functools.partial(saved, mode=mode) for mode in ("RGB", "RGBA")},
    **{f"{mode}.jp2": functools.partial(saved, mode=mode) for mode in ("L", "RGB", "RGBA")},
    **{f"{mode}.bmp": functools.partial(saved, mode=mode) for mode in ("1", "L", "RGB")},
    **{f"{mode}.gif": functools.partial(saved, mode=mode) for mode in ("L", "RGB")},
    **{f"{mode}.ppm": functools.partial(saved, mode=mode) for mode in ("L", "RGB")},
    **{
        f"{mode}.tif".replace(";", ""): functools.partial(one_strip, mode=mode)
        for mode in ["1", "L", "LAB", "RGB", "RGBA", "CMYK", "I", "I;16", "F"]
    },
    "upright.tif": upright_later,
    "tile.tif": huge_tile,
}


class Measured:
    """Another process that decodes files."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", MEASURE],
            cwd=ROOT,
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},  # freed memory goes back at once
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=ends_with_parent(),
        )

    def __call__(self, path: Path) -> tuple[int, int, str]:
        """Estimated bytes, measured bytes, and the error if there was one."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        estimate, peak, error = json.loads(self.process.stdout.readline())
        return estimate, peak, error


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    decoder = Measured()
    with decoder.process:
        path = tmp_path_factory.mktemp("first") / "a.png"
        saved(path, "RGB")
        decoder(path)  # loads what is loaded once
        yield decoder
        decoder.process.kill()


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_bounds_what_is_really_taken(measured, tmp_path, name):
    path = tmp_path / name
    try:
        CASES[name](path)
    except (KeyError, OSError) as error:
        pytest.skip(f"this Pillow cannot write {name}: {error}")
    estimate, bytes_taken, error = measured(path)
    assert bytes_taken <= estimate + SLACK_BYTES, f"{bytes_taken / EDGE**2:.1f} bytes a pixel"
    assert estimate <= 2.5 * bytes_taken + 4 * SLACK_BYTES, "an estimate far too high would keep others waiting"
    assert not error or name == "truncated.jpg"


@pytest.mark.parametrize(
    ("name", "make", "file_kb", "most_mib"),
    [
        ("float.tif", functools.partial(one_strip, mode="F", edge=8944), 570, 960),
        ("short.jpg", functools.partial(progressive_jpeg, edge=8944), 1, 1100),
    ],
)
def test_small_files_of_80_megapixels(measured, tmp_path, name, make, file_kb, most_mib):
    """A TIFF of 570 kB took 2.5 GB and a JPEG of 691 bytes 1.1 GB."""
    path = tmp_path / name
    make(path)
    assert path.stat().st_size < file_kb * 1000
    estimate, bytes_taken, _ = measured(path)
    assert bytes_taken <= estimate <= DEFAULT_BUDGET_BYTES
    assert estimate <= most_mib << 20
    with pytest.raises(ImageError) as failure:
        decode_image(path.read_bytes(), name=name, max_pixels=10**8, budget=MemoryBudget(100 << 20))
    assert failure.value.expected == "at most 100 MiB"
    assert failure.value.value.startswith(f"{estimate >> 20} MiB for 8944 x 8944 pixels")
    assert "scale the image down" in failure.value.fix


def test_a_small_image_in_a_huge_tile_is_refused(tmp_path):
    huge_tile(tmp_path / "tile.tif")
    with pytest.raises(ImageError, match="takes too much memory"):
        decode_image((tmp_path / "tile.tif").read_bytes(), name="x", max_pixels=1000, budget=MemoryBudget(8 << 20))


def test_threads_stay_within_the_budget_and_all_get_their_turn():
    budget, luck = MemoryBudget(100), random.Random(0)
    sizes = [luck.randint(1, 100) for _ in range(400)]
    held_bytes, most_bytes, lock = 0, 0, threading.Lock()

    def work(size: int) -> None:
        nonlocal held_bytes, most_bytes
        with budget.hold(size):
            with lock:
                held_bytes += size
                most_bytes = max(most_bytes, held_bytes)
            with lock:
                held_bytes -= size

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, sizes))
    assert held_bytes == 0
    assert 0 < most_bytes <= 100
    with pytest.raises(ValueError), budget.hold(101):
        pass


def test_fetchers_share_their_budget():
    """A fetch waits while others hold what it needs, and goes on when they are done."""
    with Image.open(io.BytesIO(decode_data_uri(data_uri(), 10**6))) as image:
        size = decoding_bytes(image)
    budget = MemoryBudget(size)
    fetchers = [ImageFetcher(FetchSettings(), budget=budget) for _ in range(2)]
    task = {"id": 1, "data": {"image": data_uri()}}
    with ThreadPoolExecutor(2) as pool:
        with budget.hold(size):
            waiting = [pool.submit(fetcher.fetch, task, "image") for fetcher in fetchers]
            assert not any(future.done() for future in waiting)
        assert all(future.result(60).shape == (12, 16, 3) for future in waiting)
