"""Checks that need a GPU, each with its aim, in one script and one report: `make gpu-check` (under 25 minutes).

`python -m training.benchmark.gpu_check --device cpu --tiny` runs every check on a network of a few channels, so that
the script is tested where there is no GPU; aims are then not judged. Each check runs by itself: the report has the
error of one that fails, and the others go on.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import Tensor, nn

from model.files import write_text
from training.benchmark.cost.comparison import CostSetting, compare_heads, compare_networks, compare_training
from training.benchmark.cost.measures import alternate, training_record

CONFIG = "released/R50-FPN"
TINY = (
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "8", "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.RPN.CONV_DIMS", "[32]"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "32", "MODEL.ROI_MASK_HEAD.FC_DIM", "32", "MODEL.POINT_HEAD.FC_DIM", "32"),
    *("MODEL.TRANSFINER.ENCODER_FFN_DIM", "64", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
)
GB = 1e9


@dataclass(frozen=True)
class Scale:
    """Sizes of the checks.

    Attributes:
        instances: of an image. nodes: of an instance. iterations: of a training.
    """

    setting: CostSetting
    instances: int
    nodes: int
    iterations: int

    @property
    def on_gpu(self) -> bool:
        return self.setting.device.startswith("cuda")


@dataclass
class Outcome:
    """Outcome of a check.

    Attributes:
        aim: the requirement, in words. figure: the measurement, in words.
        met: whether the aim was reached; None where it is not judged or the check failed.
    """

    name: str
    aim: str
    figure: str
    met: bool | None
    seconds: float = 0.0

    @property
    def is_failed(self) -> bool:
        return self.figure.startswith("failed")


Check = Callable[[Scale], tuple[str, bool]]


def authors_way(scale: Scale) -> tuple[str, bool]:
    """At least 10 times faster than the authors' way of computing the same masks, at 100 instances"""
    outcome = compare_heads(scale.setting, instances=scale.instances, nodes=scale.nodes)
    times = outcome["heads"]["authors_way"]["ratios"]["seconds"]
    difference = outcome["largest_difference"]
    return f"{times:.1f} times faster; probabilities differ by at most {difference:.1e}", times >= 10


def beside_mask_rcnn(scale: Scale) -> tuple[str, bool]:
    """Whole network: at least 0.8 of Mask R-CNN's frames a second and at most 1 GB more memory, at 100 instances"""
    costs = compare_networks(scale.setting, instances=(scale.instances,))["by_instances"][scale.instances]
    frames = costs["mask_rcnn"]["ratios"]["seconds"]
    pointrend = costs["pointrend"]["ratios"]["seconds"]
    memory = [costs[name]["cuda_peak_bytes"] or 0 for name in ("ours", "mask_rcnn")]
    extra_gb = (memory[0] - memory[1]) / GB
    text = f"{frames:.2f} of Mask R-CNN's frames a second, {pointrend:.2f} of PointRend's; {extra_gb:+.2f} GB memory"
    return text, frames >= 0.8 and extra_gb <= 1


def training_step(scale: Scale) -> tuple[str, bool]:
    """A training step takes at most 2 times Mask R-CNN's time"""
    costs = compare_training(scale.setting, instances=min(7, scale.instances))["training"]
    times = 1 / costs["mask_rcnn"]["ratios"]["seconds"]
    return f"{times:.2f} times Mask R-CNN's", times <= 2


def mixed_precision(scale: Scale) -> tuple[str, bool]:
    """Inference in mixed precision is at least 1.3 times faster than in fp32, mean difference of maps under 2 %"""
    backbone, image = _backbone(scale)
    kind = scale.setting.device.split(":")[0]
    dtype = torch.float16 if scale.on_gpu else torch.bfloat16

    def mixed() -> dict[str, Tensor]:
        with torch.autocast(kind, dtype):
            return _maps(backbone, image)

    return _compared(scale, lambda: _maps(backbone, image), mixed, faster=1.3, difference=0.02)


def compiled(scale: Scale) -> tuple[str, bool]:
    """torch.compile of the backbone is not slower than eager and computes the same maps"""
    backbone, image = _backbone(scale)
    # On a CPU without code generation, which needs a compiler and minutes.
    faster = torch.compile(backbone, backend="inductor" if scale.on_gpu else "eager")
    return _compared(scale, lambda: _maps(backbone, image), lambda: _maps(faster, image), faster=1.0, difference=0.02)


def cuda_graphs(scale: Scale) -> tuple[str, bool]:
    """The backbone replayed as a CUDA graph is at least 1.1 times faster and computes the same maps"""
    backbone, image = _backbone(scale)
    replay = _captured(backbone, image) if scale.on_gpu else (lambda: _maps(backbone, image))
    return _compared(scale, lambda: _maps(backbone, image), replay, faster=1.1, difference=0.001)


def mixed_training(scale: Scale) -> tuple[str, bool]:
    """A training in bf16 stays finite, learns, and steps at least 1.3 times faster than in fp32"""
    losses, seconds = {}, {}
    for dtype in (None, torch.bfloat16):
        losses[dtype], seconds[dtype] = _train(scale, dtype)
    first_loss, last_loss = losses[torch.bfloat16][0], losses[torch.bfloat16][-1]
    times = seconds[None] / seconds[torch.bfloat16]
    text = (
        f"loss {first_loss:.2f} to {last_loss:.2f} in {scale.iterations} steps, fp32 ends at {losses[None][-1]:.2f}; "
    )
    return f"{text}{times:.2f} times faster", last_loss < first_loss and times >= 1.3


CHECKS: dict[str, Check] = {
    "the authors' way": authors_way,
    "beside Mask R-CNN": beside_mask_rcnn,
    "training step": training_step,
    "mixed precision": mixed_precision,
    "torch.compile": compiled,
    "CUDA graphs": cuda_graphs,
    "training in bf16": mixed_training,
}


def _backbone(scale: Scale) -> tuple[nn.Module, Tensor]:
    network, _ = scale.setting.open()
    backbone = network.get_submodule("backbone")
    height, width = (-(-edge // 32) * 32 for edge in (scale.setting.height, scale.setting.width))
    return backbone, torch.randn(1, 3, height, width, device=scale.setting.device)


@torch.no_grad()
def _maps(backbone: Any, image: Tensor) -> dict[str, Tensor]:
    maps: dict[str, Tensor] = backbone(image)
    return maps


def _captured(backbone: nn.Module, image: Tensor) -> Callable[[], dict[str, Tensor]]:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            _maps(backbone, image)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        maps = _maps(backbone, image)

    def replay() -> dict[str, Tensor]:
        graph.replay()
        return maps

    return replay


def _compared(
    scale: Scale,
    plain: Callable[[], dict[str, Tensor]],
    alternative: Callable[[], dict[str, Tensor]],
    *,
    faster: float,
    difference: float,
) -> tuple[str, bool]:
    """Compare two computations of the same maps: speed-up of the second one, and its mean relative difference."""
    plain_maps, alternative_maps = plain(), alternative()
    largest_difference = max(
        float((alternative_maps[name].float() - value).abs().mean() / value.abs().mean().clamp(min=1e-12))
        for name, value in plain_maps.items()
    )
    repeats = max(1, scale.setting.repeats) * (10 if scale.on_gpu else 1)
    first_s, other_s = alternate([plain, alternative], device=scale.setting.device, repeats=repeats)
    times = first_s / other_s
    return (
        f"{times:.2f} times faster, maps differ by {100 * largest_difference:.2f} %",
        times >= faster and largest_difference <= difference,
    )


def _train(scale: Scale, dtype: torch.dtype | None) -> tuple[list[float], float]:
    """Losses of a short training on one record, and seconds of its median step."""
    network, cfg = scale.setting.open()
    setting, classes = scale.setting, cfg.MODEL.ROI_HEADS.NUM_CLASSES
    record = training_record(setting.height, setting.width, instances=min(7, scale.instances), classes=classes)
    optimizer = torch.optim.AdamW([p for p in network.train().parameters() if p.requires_grad], 1e-4)
    losses: list[float] = []

    def step() -> None:
        kind = setting.device.split(":")[0]
        cast: AbstractContextManager[Any] = torch.autocast(kind, dtype) if dtype else nullcontext()
        with EventStorage(), cast:
            loss = sum(network([record]).values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))

    torch.manual_seed(0)
    (seconds,) = alternate([step], device=setting.device, repeats=scale.iterations)
    return losses, seconds


def run_checks(scale: Scale, *, has_aims: bool, on_line: Callable[[str], object] = print) -> list[Outcome]:
    """Run all checks in turn; ``has_aims``: whether figures are compared with the aims."""
    outcomes = []
    for name, check in CHECKS.items():
        on_line(f"{name} ...")
        began_s = time.perf_counter()
        aim = str(check.__doc__)
        try:
            figure, met = check(scale)
            outcome = Outcome(name, aim, figure, met if has_aims else None)
        except Exception:
            outcome = Outcome(name, aim, f"failed: {traceback.format_exc(limit=3)}", None)
        if scale.on_gpu:
            torch.cuda.empty_cache()
        outcome.seconds = round(time.perf_counter() - began_s, 1)
        outcomes.append(outcome)
    return outcomes


def report_markdown(outcomes: list[Outcome], scale: Scale) -> str:
    """Write the outcomes as a Markdown table."""
    setting = scale.setting
    place = torch.cuda.get_device_name(setting.device) if scale.on_gpu else "CPU (a rehearsal)"
    verdicts = {True: "met", False: "**missed**", None: "not judged"}
    rows = [
        (
            *(outcome.name, outcome.aim, outcome.figure.replace("\n", " ")),
            "**failed**" if outcome.is_failed else verdicts[outcome.met],
            f"{outcome.seconds:.0f}",
        )
        for outcome in outcomes
    ]
    facts = f"{setting.config}, {setting.width} x {setting.height} px, {scale.instances} instances"
    lines = [f"# GPU check on {place}", "", f"{facts}, torch {torch.__version__}", ""]
    table = tabulate(rows, ("check", "aim", "figure", "", "s"), "github", disable_numparse=True)
    return "\n".join([*lines, table]) + "\n"


@click.command()
@click.option("--device", default="cuda", show_default=True)
@click.option("--tiny", is_flag=True, help="A network of a few channels: only whether everything runs.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("var/gpu-check"))
def main(device: str, tiny: bool, out: Path) -> None:
    """Run all checks; report.md and report.json in --out. Exit code 1: one failed or missed its aim."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise click.ClickException("torch sees no GPU here; rehearse with --device cpu --tiny")
    if tiny:
        setting = CostSetting(CONFIG, height=64, width=96, device=device, overrides=TINY, repeats=1)
        scale = Scale(setting, instances=4, nodes=300, iterations=2)
    else:
        scale = Scale(CostSetting(CONFIG, device=device, repeats=5), instances=100, nodes=560, iterations=40)
    outcomes = run_checks(scale, has_aims=not tiny, on_line=lambda line: click.echo(line, err=True))
    text = report_markdown(outcomes, scale)
    write_text(out / "report.md", text)
    write_text(out / "report.json", json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    click.echo(text)
    sys.exit(any(outcome.is_failed or outcome.met is False for outcome in outcomes))


if __name__ == "__main__":
    main()
