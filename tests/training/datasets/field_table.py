"""Run the small reproductions of ../shared/field against this working tree and print what each says.

Run: python -m tests.training.datasets.field_table [NAME ...]
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
FIELD = ROOT.parent / "shared" / "field"
#: Places that moved since the reproductions were written.
MOVED = {
    "integration.image_decoding": "model.images",
    "integration.label_config": "integration.label_studio.label_config",
    "integration.locations": "integration.images.fetch",
    "integration.annotations": "integration.regions.read",
    "integration.brush": "integration.regions.shapes",
    "encode_mask": "encode_brush_mask",
    "backend.interactive": "backend.predictions.prompts",
    "integration.regions import": "integration.regions.write import",
    "backend.snapshot_images": "backend.learning.snapshot",
}
#: What the output of each folder has to say (regular expressions).
WANTED: dict[str, tuple[str, ...]] = {
    "coco-16-bit-is-white": (r"see: mean (\d+\.\d), 0\.0 % white;.* see: mean \1",),
    "coco-box-drops-a-good-mask": (r"14 objects", r"refined +[1-9]", r"  1 objects"),
    "coco-damaged-image-stops-everything": (
        r"demo-000002\.jpg: image: damaged image",
        r"8 iterations(.|\n)*8 iterations",
    ),
    "coco-duplicate-annotation-ids": (
        r"refined +(\d+\.\d)(.|\n)*refined +\1",
        r"score notices it\nNote: ground truth: 1 x repeated annotation id",
    ),
    "coco-duplicate-class-name": (r"both called 'gear'", r"NUM_CLASSES is 6, the training sets have 5"),
    "coco-huge-coordinate-segfault": (r"degenerate polygon", r"exit status 1"),
    "coco-image-of-another-size": (r"became 1 stripes; IoU 1\.0", r"is 192 x 144, its record says 384 x 288"),
    "coco-tracebacks": (r"string-ids\.json:   nothing wrong", r"annotations is? ?.*null|it is null"),
    "image-value-templates": (r"backend: https://cdn\.example\.org/a\.png",),
    "interactive-one-entry-is-not-one-object": (
        r"Labels \+ Polygon .*clicked: \[.*polygon.*, .*labels",
        r"Labels \+ Brush .*clicked: \[.*brush.*labels",
        r"SAM template.*clicked: \[.*brushlabels",
    ),
    "lvis-file-name-cut": (r"gear +4",),
    "predict-writes-tasks-label-studio-cannot-show": (r"'image': 'data:image/png;base64,", r"--image-prefix"),
    "small-ones": (
        r"wrapped lines ok",
        r"'a#b\.png'",
        r"'dir/a\.png'",
        r"120 x 100: \(\)",
        r"# Corrections",
        r"min\.json is a JSON-MIN export: ",
    ),
    "snapshot-region-of-another-image": (r"objects: 1 crowd: 0(.|\n)*objects: 1 crowd: 0",),
    "snapshot-unread-shape-becomes-background": (r"task 1 objects: 1", r"task 2 objects: 2", r"task 4 objects: 1"),
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
            output = run_folder(folder)
            lacking = [pattern for pattern in WANTED.get(folder.name, ()) if not re.search(pattern, output)]
            short_output = "\n".join(line[:300] for line in output.rstrip().splitlines())  # images in tasks are long
            print(f"== {folder.name}: {f'LACKS {lacking}' if lacking else 'as wanted'}\n{short_output}\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
