"""`transfiner benchmark`: the paper's tables by number, and measurements of accuracy, cost and speed by name."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from backend.cli.types import (
    DEVICE,
    FOLDER,
    SuggestingGroup,
    device_option,
    json_option,
    limit_threads,
    plain_errors,
    print_result,
    size_option,
    threads_option,
    weights_option,
)
from backend.devtools.load import capacity
from backend.settings import SCENES_MODEL

TABLE_NUMBERS = [str(number) for number in range(1, 13)]

train_set_option = click.option("--train-set", "train", required=True, help="Set to learn, as in `data check`.")
test_set_option = click.option("--test-set", "test", required=True, help="Set to measure on.")
ratio_option = click.option("--ratio", type=float, default=0.02, help="Boundary width / image diagonal.")
cpu_option = click.option("--device", type=DEVICE, default="cpu")
iterations_option = click.option(
    "--iterations", type=click.IntRange(0), default=0, help="Instead of the configuration's; 0: those."
)


def _tell(line: str) -> None:
    """Print a line of progress to the error stream, apart from the result."""
    click.echo(line, err=True)


class BenchmarkGroup(SuggestingGroup):
    """A group whose commands are the tables' numbers beside the named ones."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*TABLE_NUMBERS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return table if cmd_name in TABLE_NUMBERS else super().get_command(ctx, cmd_name)


@click.group(cls=BenchmarkGroup)
def benchmark() -> None:
    """Reproduce a table of the paper, or measure cost, precision and few-shot learning.

    \b
    Example: transfiner benchmark 5 --data ~/coco --dry-run
    """


benchmark.add_command(capacity)


@click.command("1..12")
@click.option("--data", type=click.Path(file_okay=False), default="", help="Folder of the data set.")
@click.option("--train-set", default="", help="Another training set, scenes:SPLIT:COUNT or coco:FILE:FOLDER/.")
@click.option("--test-set", default="", help="Another set to measure on.")
@click.option("--lvis", default="", help="LVIS annotations of the test images, for AP*.")
@click.option(
    "--out",
    type=FOLDER,
    default=Path("var/benchmark"),
    help="Folder of models, results and reports; a run goes on there.",
)
@click.option("--checkpoints", type=FOLDER, help="Folder with a checkpoint per row, loaded instead of trained.")
@click.option("--row", "rows", multiple=True, help="Only this row (its key); repeatable.")
@iterations_option
@click.option("--seeds", type=click.IntRange(1), default=1, help="Trainings of every row.")
@click.option("--init", default="", help='Where weights start: "imagenet" or a checkpoint directory.')
@device_option
@click.option(
    "--speed-iterations", type=click.IntRange(0), default=0, help="Of a run of frames per second; 0: 200 (CPU 20)."
)
@click.option("--speed-runs", type=click.IntRange(1), default=5)
@click.option(
    "--miniature", is_flag=True, help="Generated scenes and a tiny network: minutes, and no claim about COCO."
)
@click.option("--dry-run", is_flag=True, help="Only say what it needs: data and trainings.")
@json_option
@click.pass_context
def table(
    ctx: click.Context,
    train_set: str,
    test_set: str,
    device: str,
    out: Path,
    checkpoints: Path | None,
    rows: tuple[str, ...],
    speed_iterations: int,
    speed_runs: int,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train or load what a table compares, measure it, and write report.json and report.md.

    \b
    Example: transfiner benchmark 2 --miniature --iterations 20
    """
    from model.inference.predictor import choose_device
    from training.benchmark.runner import (
        BenchmarkStopped,
        Scale,
        data_of,
        missing_files,
        plan_table,
        plan_text,
        run_table,
    )
    from training.benchmark.tables import TABLES, build_table_report, write_table_report

    paper_table = TABLES[int(str(ctx.info_name))]
    scale = Scale(train=train_set, test=test_set, device=str(choose_device(device)), **options)
    if dry_run:
        plan = plan_table(paper_table, scale)
        print_result(plan, plan_text(plan), as_json)
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    data_set = data_of(paper_table, scale)
    if absent_files := missing_files(*([] if checkpoints else [data_set.train]), data_set.test):
        raise click.ClickException(
            f"table {paper_table.number} needs {data_set.needs}; missing: {', '.join(absent_files)}. Give the folder "
            "with --data, other sets with --train-set and --test-set, or --miniature"
        )
    speed_options = (speed_iterations or None, speed_runs)
    with plain_errors(BenchmarkStopped):
        results = run_table(
            paper_table, out, scale, only=rows, checkpoints=checkpoints, speed=speed_options, tell=_tell
        )
    setting = {
        "train": data_set.train,
        "test": data_set.test,
        "device": scale.device,
        "seeds": scale.seeds,
        "miniature": scale.miniature,
        "iterations": scale.iterations or "the schedule's",
    }
    report = build_table_report(paper_table, results, setting=setting)
    print_result(report, write_table_report(out / f"table-{paper_table.number}", report), as_json)


@benchmark.command()
@weights_option("Base that learns.", default="photos")
@train_set_option
@test_set_option
@click.option("--class", "classes", multiple=True, help="A class to learn; all of the training set by default.")
@click.option("--images", "counts", type=click.IntRange(1), multiple=True, default=(5, 10, 15, 30))
@click.option("--seeds", type=click.IntRange(1), default=3, help="Draws of each number.")
@click.option("--all-test-images", is_flag=True, help="Measure on images without the classes, too.")
@json_option
@threads_option
def fewshot(
    weights: Path,
    train: str,
    test: str,
    classes: tuple[str, ...],
    counts: tuple[int, ...],
    seeds: int,
    all_test_images: bool,
    threads: int,
    as_json: bool,
) -> None:
    """Print AP against the number of annotated photographs that new classes are learned from.

    \b
    Example: transfiner benchmark fewshot --train-set via:balloon/train:balloon --test-set via:balloon/val:balloon
    """
    from training.datasets import CocoSet, open_set
    from training.fewshot.curve import CurvePoint, class_samples, curve_as_dict, curve_text, fewshot_curve

    limit_threads(threads)

    def show(point: CurvePoint) -> None:
        figures = f"boundary AP {100 * point.boundary_ap:.1f}, mask AP {100 * point.mask_ap:.1f}"
        _tell(f"{point.images} images, draw {point.seed}: {figures}")

    with plain_errors():
        train_set, test_set = open_set(train), open_set(test)
        if not (isinstance(train_set, CocoSet) and isinstance(test_set, CocoSet)):
            raise click.UsageError("give sets of photographs: coco:FILE.json:IMAGES/, lvis:... or via:FOLDER[:LABEL]")
        names = classes or train_set.class_names
        train_samples = class_samples(train_set, names)
        test_samples = class_samples(test_set, names, all_images=all_test_images)
        points = fewshot_curve(weights, train_samples, test_samples, counts, seeds, progress=show)
    print_result(curve_as_dict(points), curve_text(points), as_json)


@benchmark.command()
@click.option("--config", default="released/R50-FPN", help="Of Mask Transfiner.")
@click.option(
    "--instances",
    type=click.IntRange(1),
    multiple=True,
    default=(50, 100),
    help="Detections that are kept; repeatable.",
)
@click.option(
    "--nodes", type=click.IntRange(1), default=364, help="Nodes of each of our instances, beside 196 reference points."
)
@size_option
@click.option("--repeats", type=click.IntRange(1), default=3, help="Turns; the median counts.")
@click.option("--training/--no-training", default=False, help="Also a training step beside Mask R-CNN's.")
@click.option(
    "--precision",
    type=click.Choice(("fp32", "bf16")),
    default="fp32",
    help="bf16: also all three in bf16 on a CPU, and PointRend with the detected class alone; processor seconds.",
)
@cpu_option
@threads_option
@json_option
def networks(
    config: str,
    size: tuple[int, int],
    repeats: int,
    training: bool,
    device: str,
    threads: int,
    as_json: bool,
    **amounts: Any,
) -> None:
    """Time and count Mask Transfiner, Mask R-CNN and PointRend whole, as ratios from one run.

    \b
    Example: transfiner benchmark networks --instances 50 --instances 100 --training
    """
    from training.benchmark.cost.comparison import CostSetting, compare_networks, compare_training, network_costs_text
    from training.evaluation.run import keep_freed_memory

    limit_threads(threads)
    keep_freed_memory(device)
    setting = CostSetting(config, height=size[0], width=size[1], device=device, repeats=repeats)
    with plain_errors(KeyError):
        inference = compare_networks(setting, tell=_tell, **amounts)
        training_costs = compare_training(setting, tell=_tell) if training else None
    outcome = {"inference": inference, "training": training_costs}
    print_result(outcome, network_costs_text(inference, training_costs), as_json)


@benchmark.command()
@weights_option("Checkpoint; the scenes' model by default.", default=SCENES_MODEL)
@click.option("--set", "name", default="scenes:val:200", help="The model's own validation set, by name.")
@ratio_option
@click.option("--threads", type=click.IntRange(0), default=1, help="0: the machine's.")
@click.option(
    "--card", is_flag=True, help="Write the figures into the checkpoint: TRANSFINER_PRECISION=auto asks them."
)
@json_option
def precision(weights: Path, name: str, ratio: float, threads: int, card: bool, as_json: bool) -> None:
    """Measure what bf16 costs a checkpoint in AP and gains in time, beside fp32 in one run on a CPU.

    \b
    Example: transfiner benchmark precision --weights model/weights/scenes-small --set scenes:val:200 --card
    """
    from training.datasets import open_set
    from training.evaluation.precision import compare_precisions, precision_markdown, record_precision

    limit_threads(threads)
    with plain_errors():
        samples = open_set(name)
        with click.progressbar(length=len(samples), label=f"measuring {name}", file=sys.stderr) as bar:
            outcome = compare_precisions(weights, samples, ratio=ratio, progress=lambda: bar.update(1))
    if card:
        # Paths of this machine mean nothing on another.
        short = ":".join(Path(part).name for part in name.split(":"))
        command = f"transfiner benchmark precision --weights {weights.name} --set {short} --card"
        record_precision(weights, outcome, short, command)
    print_result(outcome, precision_markdown(outcome, name), as_json)
