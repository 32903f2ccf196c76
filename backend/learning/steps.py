"""The heavy steps of a round, each a process of its own: watched, stopped on demand, gone when its worker is gone.

`python -m backend.learning.steps STEP JSON` runs one, so the worker that watches needs no torch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.errors import StartError
from backend.processes.parent_death import bound_command

if TYPE_CHECKING:
    from backend.settings import Settings

log = logging.getLogger(__name__)
POLL_S = 0.25
# A child asked to stop saves its state first; on a busy machine one iteration takes seconds.
STOP_GRACE_S = 120.0
LOG_TAIL_LINES = 15
FEW_SHOT, FINETUNE, JUDGE = "few-shot", "finetune", "judge"
VERDICT_FILE, PROGRESS_FILE = "verdict.json", "progress.json"
# (step, its input) -> its command line.
StepCommand = Callable[[str, Mapping[str, Any]], list[str]]


def step_command(settings: Settings, step: str, request: Mapping[str, Any]) -> list[str]:
    """The command line of a step; a finetuning by several processes runs under torchrun."""
    options: dict[str, dict[str, Any]] = {
        FEW_SHOT: {"threads": settings.torch_threads},
        FINETUNE: {
            "base_sets": settings.finetune_base_sets,
            "settings": {"device": settings.device, **settings.finetune_options},
        },
        JUDGE: {
            "rules": settings.gate_rules,
            "device": settings.device,
            "precision": settings.precision,
            "shown_from": settings.score_threshold,
        },
    }
    launcher = [sys.executable]
    if step == FINETUNE and settings.train_processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={settings.train_processes}"]
    return [*launcher, "-m", "backend.learning.steps", step, json.dumps({**request, **options[step]}, default=str)]


def check_step_options(settings: Settings) -> None:
    """Check at the start what else a round would find out after its snapshot or its training.

    Raises:
        StartError: a field of TRANSFINER_FINETUNE_OPTIONS or a rule of TRANSFINER_GATE_RULES is unknown or wrong.
    """
    fix = "Correct or unset the variable."
    if settings.finetune_options:
        from training.finetune.plan import FinetuneSettings

        names = [field.name for field in fields(FinetuneSettings)]
        if unknown_names := [name for name in settings.finetune_options if name not in names]:
            unknown = ", ".join(map(repr, unknown_names))
            raise StartError(f"TRANSFINER_FINETUNE_OPTIONS has {unknown}, expected some of {', '.join(names)}.", fix)
        try:
            FinetuneSettings(**settings.finetune_options)
        except (TypeError, ValueError) as error:
            raise StartError(f"TRANSFINER_FINETUNE_OPTIONS: {error}", fix) from error
    if settings.gate_rules:
        from training.gate.verdict import parse_rules

        try:
            parse_rules(settings.gate_rules)
        except ValueError as error:
            raise StartError(f"TRANSFINER_GATE_RULES: {error}", fix) from error


@dataclass(frozen=True)
class ChildResult:
    """The result of a child process.

    Attributes:
        code: exit status; negative: the signal that killed it.
        stopped_for: why it was asked to stop; "" when it was not.
        tail: the last lines of its output.
    """

    code: int
    stopped_for: str
    tail: str


def run_child(
    command: Sequence[str], folder: Path, name: str, *, look: Callable[[], None], stop_because: Callable[[], str]
) -> ChildResult:
    """Run `command` to its end; its output goes to FOLDER/<name>.log.

    Args:
        look: called a few times a second, e.g. to read the child's progress.
        stop_because: returns a reason to ask the child to end (SIGTERM), or "" to let it go on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"{name}.log"
    with output.open("ab") as stream:
        child = subprocess.Popen(
            bound_command(list(command), folder / f".{name}.lock"),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    reason = ""
    try:
        while child.poll() is None and not (reason := stop_because()):
            look()
            time.sleep(POLL_S)
        look()
    finally:
        _end(child)
    return ChildResult(child.returncode, reason, _tail(output))


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            log.warning("the child did not end within %.0f s; killing it", STOP_GRACE_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # Processes that the child started end, too.
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _tail(output: Path) -> str:
    return "\n".join(output.read_text(errors="replace").strip().splitlines()[-LOG_TAIL_LINES:])


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that another process replaces atomically; {} while there is none."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return facts if isinstance(facts, dict) else {}


def few_shot(*, base: str, incumbent: str, snapshot: str, out: str, classes: Sequence[str], threads: int) -> int:
    """Write OUT/checkpoint and OUT/folds.json, and keep OUT/progress.json up to date."""
    import torch

    from training.fewshot.learn import learn_few_shot

    if threads:
        torch.set_num_threads(threads)
    learn_few_shot(Path(base), Path(snapshot), Path(out), classes=classes, incumbent=Path(incumbent))
    return 0


def finetune(
    *,
    active: str,
    snapshot: str,
    out: str,
    classes: Sequence[str],
    replay: Sequence[str],
    base_sets: Sequence[str],
    settings: Mapping[str, Any],
) -> int:
    """Write OUT/checkpoint and keep OUT/progress.json up to date; SIGTERM saves its state and ends it with status 1."""
    from training.finetune.finetune import FinetuneStopped
    from training.finetune.finetune import finetune as learn
    from training.finetune.plan import FinetuneSettings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    earlier = [Path(path) for path in replay]
    finetune_settings = FinetuneSettings(**settings)
    try:
        learn(
            Path(active),
            Path(snapshot),
            Path(out),
            classes=classes,
            replay=earlier,
            base_sets=base_sets,
            settings=finetune_settings,
        )
    except FinetuneStopped as stop:
        print(stop, file=sys.stderr)
        return 1
    return 0


def judge(
    *,
    candidate: str,
    incumbent: str,
    best: str | None,
    snapshot: str,
    earlier: Sequence[str],
    folds: str | None,
    out: str,
    rules: Mapping[str, Any],
    device: str,
    precision: str,
    shown_from: float,
) -> int:
    """Write OUT/verdict.json and OUT/report; 0 when the candidate may serve, 3 when it is refused.

    The cost of bf16, where it may be served so, and the order of tasks are written beside the candidate's weights.
    """
    from backend.learning.annotation_cost import calibrated_order
    from model.files import write_text
    from model.inference.predictor import choose_device
    from training.gate.gate import judge as rule
    from training.gate.gate import record_bf16
    from training.gate.holdout import DetectionCache, detect_with
    from training.gate.verdict import parse_rules

    checkpoint, snapshot_folder = Path(candidate), Path(snapshot)
    folds_file = None if folds is None else Path(folds)
    gate_rules = parse_rules(rules)
    device_name = str(choose_device(device))
    detect = DetectionCache(detect_with(device_name))
    if precision == "auto" and device_name == "cpu":
        record_bf16(checkpoint, snapshot_folder, gate_rules, detect)
    order = calibrated_order(checkpoint, snapshot_folder, folds_file, device=device_name, shown_from=shown_from)
    verdict = rule(
        checkpoint,
        Path(incumbent),
        None if best is None else Path(best),
        snapshot_folder,
        earlier=[Path(path) for path in earlier],
        rules=gate_rules,
        detect=detect,
        folds=folds_file,
        out=Path(out) / "report",
    )
    write_text(Path(out) / VERDICT_FILE, json.dumps({**verdict.as_dict(), "order": order}))
    return 0 if verdict.promote else 3


def main() -> int:
    """Run the step of the command line."""
    steps: dict[str, Callable[..., int]] = {FEW_SHOT: few_shot, FINETUNE: finetune, JUDGE: judge}
    return steps[sys.argv[1]](**json.loads(sys.argv[2]))


if __name__ == "__main__":
    sys.exit(main())
