"""A Label Studio, a finetuning and a gate that cost nothing, for tests of the loop's mechanics.

What they shall do comes as JSON in a file, so that a test can change its mind while a worker process runs:

    new: annotations newer than any snapshot; data: text that names the snapshot's content; at: its newest time;
    iterations, seconds: of the finetuning; promote: what the gate says; crash: the finetuning ends
    with that code; gate_crash: the gate does.

Little is imported at the top: the finetuning and the gate are processes that shall start at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backend.doctor.connection import ConnectionUpdate

HERE = Path(__file__)


class Wishes:
    """The file, and what was done, line by line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "wishes.json"

    def set(self, **wishes: Any) -> None:
        unfinished = self.folder / "wishes.part"
        unfinished.write_text(json.dumps({**self.get(), **wishes}))
        unfinished.replace(self.file)

    def get(self) -> dict[str, Any]:
        return json.loads(self.file.read_text()) if self.file.exists() else {}

    def note(self, line: str) -> None:
        with (self.folder / "done.txt").open("a") as file:
            file.write(line + "\n")

    def done(self, first: str = "") -> list[str]:
        path = self.folder / "done.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line.startswith(first)]

    def count_new(self, project: str, newest_at: str) -> int:
        wishes = self.get()
        if wishes.get("away"):
            raise OSError("Label Studio is away")
        self.note(f"count {project} {newest_at}")
        return wishes.get("new", 0) if newest_at < wishes.get("at", "2026-01-01T00:00:00+00:00") else 0

    def take_snapshot(self, project: str, folder: Path) -> Path:
        wishes = self.get()
        digest = hashlib.sha256(wishes.get("data", "a").encode()).hexdigest()
        at = wishes.get("at", "2026-01-01T00:00:00+00:00")
        self.note(f"snapshot {project} {digest[:8]}")
        return write_snapshot(folder / digest, digest, project, at, wishes.get("images", 3), wishes.get("parts", {}))

    def follow(self, project: str) -> ConnectionUpdate:
        from backend.doctor.connection import ConnectionUpdate

        self.note(f"follow {project}")
        return ConnectionUpdate(True, messages=("the backend's title",))


def double_command(wishes: Wishes, step: str, request: Mapping[str, Any]) -> list[str]:
    """This file as another process, in place of a heavy step."""
    if step == "finetune":
        wishes.note(f"finetune from {request['active'].name} replay {len(request['replay'])}")
    elif step == "few-shot":
        wishes.note(f"few-shot from {request['base'].name} against {request['incumbent'].name}")
    else:
        best = request["best"].name if request["best"] else "-"
        wishes.note(f"gate earlier {len(request['earlier'])} best {best}")
    return [sys.executable, str(HERE), step, str(wishes.folder), json.dumps(dict(request), default=str)]


def write_snapshot(
    directory: Path, digest: str, project: str, at: str, images: int = 3, parts: dict[str, int] | None = None
) -> Path:
    directory.mkdir(parents=True)
    manifest = {
        "digest": digest,
        "project": project,
        "created": at,
        "classes": ["gear", "leaf"],
        "newest_annotation_at": at,
        "counts": {"images": images, **(parts or {})},
        "annotation_ids": [1],
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    for name in ("train.json", "holdout.json"):
        (directory / name).write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    (directory / "images").mkdir()
    return directory


def write_checkpoint(directory: Path, version: str, content: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    weights = content.encode()
    (directory / "model.safetensors").write_bytes(weights)
    (directory / "config.yaml").write_text("MODEL: {}\n")
    facts = {"name": "fake", "version": version, "classes": ["gear", "leaf"]}
    facts["digest"] = hashlib.sha256(weights).hexdigest()
    (directory / "metadata.json").write_text(json.dumps(facts))
    return directory


def finetune(wishes: Wishes, facts: dict[str, Any]) -> None:
    out = Path(facts["out"])
    out.mkdir(parents=True, exist_ok=True)
    state = out / "state.json"
    iteration = json.loads(state.read_text()) if state.exists() else 0
    wishes.note(f"begin at {iteration}")
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    wanted = wishes.get()
    if wanted.get("crash"):
        print("no memory left")
        sys.exit(wanted["crash"])
    while iteration < wanted.get("iterations", 1):
        time.sleep(wanted.get("seconds", 0.0))
        if stopped:
            wishes.note(f"stopped at {iteration}")
            sys.exit(0)
        iteration += 1
        state.write_text(json.dumps(iteration))
        progress = {"iteration": iteration, "of": wanted.get("iterations", 1), "eta_s": 7, "phase": "training"}
        (out / ".part").write_text(json.dumps({**progress, "losses": {"total": 1.0 / iteration}}))
        (out / ".part").replace(out / "progress.json")
    write_checkpoint(out / "checkpoint", "made", f"{facts['snapshot']} {wanted.get('data', 'a')} {time.time()}")


def judge(wishes: Wishes, facts: dict[str, Any]) -> None:
    wanted = wishes.get()
    if wanted.get("gate_crash"):
        print("no verdict")
        sys.exit(wanted["gate_crash"])
    promote = wanted.get("promote", True)
    verdict = {"promote": promote, "reasons": ["better" if promote else "worse"], "order": "by certainty"}
    verdict["figures"] = {"boundary_ap": {"candidate": 0.5}}
    verdict["metrics"] = {"mask_ap": 0.5, "boundary_ap": 0.4}
    Path(facts["out"], "verdict.json").write_text(json.dumps(verdict))
    sys.exit(0 if promote else 3)


def work(folder: str) -> None:
    from backend.learning.train_worker import run_train_worker
    from backend.logs import set_up_logs
    from backend.processes.parent_death import die_with_parent
    from backend.settings import Settings

    die_with_parent(int(os.environ["PARENT"]), signal.SIGKILL)
    settings = Settings()
    set_up_logs(settings)
    wishes = Wishes(Path(folder))
    run_train_worker(settings, label_studio=wishes, command=partial(double_command, wishes))


if __name__ == "__main__":
    what, folder, *rest = sys.argv[1:]
    if what == "work":
        work(folder)
    else:
        (judge if what == "judge" else finetune)(Wishes(Path(folder)), json.loads(rest[0]))
