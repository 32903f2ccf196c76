"""Run the small reproductions of ../shared/field against this working tree and print what each says.

Run: python -m tests.support.field_table [NAME ...]
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIELD = ROOT.parent / "shared" / "field"
#: Places that moved since the reproductions were written.
MOVED = {
    "integration.image_decoding": "integration.images.decode",
    "integration.label_config": "integration.label_studio.label_config",
    "integration.locations": "integration.images.urls",
    "integration.annotations": "integration.regions.read",
    "integration.brush": "integration.regions.brush_rle",
    "encode_mask": "encode_brush_mask",
    "backend.snapshot_images": "backend.learning.snapshot.images",
}


def run_folder(folder: Path, timeout_s: float = 600) -> str:
    """Output of one reproduction, with the names of today in its Python parts."""
    script = (folder / "repro.sh").read_text()
    renames = "; ".join(f"s/{old.replace('.', '[.]')}/{new}/g" for old, new in MOVED.items())
    script = script.replace("$P/.venv/bin/transfiner", "$P/.venv/bin/python -m backend.cli")
    script = script.replace('cd "$W"', f'cd "$W"; ls *.py >/dev/null 2>&1 && sed -i "{renames}" *.py', 1)
    environment = os.environ | {"PROJECT": str(ROOT), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = ["sh", "-c", script, str(folder / "repro.sh")]
    outcome = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s)
    return outcome.stdout + outcome.stderr


def main(names: list[str]) -> None:
    """Print a table of the folders asked for, or of all."""
    if not FIELD.is_dir():
        raise SystemExit(f"{FIELD} is not there; nothing to run")
    for folder in sorted(path.parent for path in FIELD.glob("*/repro.sh")):
        if not names or folder.name in names:
            print(f"== {folder.name}\n{run_folder(folder).rstrip()}\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
