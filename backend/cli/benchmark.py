"""`transfiner benchmark`: the paper's tables by number, and measurements of accuracy, cost and speed by name."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from backend.cli.types import (
    CHECKPOINT,
    DEVICE,
    SuggestingGroup,
    json_option,
    limit_threads,
    print_result,
    size_option,
    threads_option,
)
from backend.devtools.capacity.command import capacity
from backend.settings import SCENES_MODEL

BUDGETS = (250, 500, 1000, 2000, 4000, 8000)


def _tell(line: str) -> None:
    """Print what is being done, beside the result."""
    click.echo(line, err=True)


@click.command()
@click.option("--weights", type=CHECKPOINT, required=True, help="Checkpoint directory or name.")
@click.option("--set", "name", default="scenes:val:40", show_default=True, help="Set, scenes:... or coco:FILE:FOLDER/.")
@click.option(
    "--budget",
    "budgets",
    type=click.IntRange(1),
    multiple=True,
    default=BUDGETS,
    show_default=True,
    help="Nodes an image; repeatable.",
)
@click.option("--device", type=DEVICE, default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(0), default=1, show_default=True, help="0: the machine's.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="PNG of the curve.")
@json_option
def anytime(
    weights: Path, name: str, budgets: tuple[int, ...], device: str, threads: int, picture: Path | None, as_json: bool
) -> None:
    """Draw boundary AP against time for several node budgets (MODEL.TRANSFINER.TEST_NODE_BUDGET), the knee marked.

    \b
    Example: transfiner benchmark anytime --weights model/weights/scenes-small --picture anytime.png
    """
    from training.benchmark.cost.anytime import anytime_as_dict, anytime_curve, anytime_text, budget_name, knee
    from training.datasets import open_set
    from training.evaluation.run import load_for_evaluation
    from training.visualization.charts import draw_budget_curve

    limit_threads(threads)
    network, cfg, _ = load_for_evaluation(weights, device)
    samples = open_set(name)
    with click.progressbar(length=len(samples), label=f"measuring {name}", file=sys.stderr) as bar:
        points = anytime_curve(network, cfg, samples, budgets, progress=lambda _: bar.update(1))
    if picture is not None:
        draw_budget_curve(points, knee(points), budget_name, picture)
    print_result(anytime_as_dict(points), anytime_text(points), as_json)


@click.command()
@click.option("--weights", type=CHECKPOINT, default="photos", show_default=True, help="Base that learns.")
@click.option("--train-set", "train", required=True, help="Set to draw images from, as in `transfiner data check`.")
@click.option("--test-set", "test", required=True, help="Set to measure on.")
@click.option("--class", "classes", multiple=True, help="A class to learn; all of the training set by default.")
@click.option("--images", "counts", type=click.IntRange(1), multiple=True, default=(5, 10, 15, 30), show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Draws of the training images.")
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
    """Draw AP against the number of annotated photographs that new classes are learned from.

    \b
    Example: transfiner benchmark fewshot --train-set via:balloon/train:balloon --test-set via:balloon/val:balloon
    """
    from training.datasets import CocoSet, open_set
    from training.fewshot.curve import ClassSamples, CurvePoint, curve_as_dict, curve_text, fewshot_curve

    limit_threads(threads)

    def show(point: CurvePoint) -> None:
        figures = f"boundary AP {100 * point.boundary_ap:.1f}, mask AP {100 * point.mask_ap:.1f}"
        click.echo(f"{point.images} images, draw {point.seed}: {figures}", err=True)

    source, tested = open_set(train), open_set(test)
    if not (isinstance(source, CocoSet) and isinstance(tested, CocoSet)):
        raise click.UsageError("give sets of photographs: coco:FILE.json:IMAGES/, lvis:... or via:FOLDER[:LABEL]")
    names = classes or source.class_names
    try:
        points = fewshot_curve(
            weights,
            ClassSamples(source, names),
            ClassSamples(tested, names, all_images=all_test_images),
            counts,
            seeds,
            progress=show,
        )
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    print_result(curve_as_dict(points), curve_text(points), as_json)


@click.command()
@click.option(
    "--config",
    default="training/photographs",
    show_default=True,
    help="Of Mask Transfiner; detectron2's Mask R-CNN is trained with the same keys.",
)
@click.option("--train-set", "train", required=True, help="Set to learn, as in `transfiner data check`.")
@click.option("--test-set", "test", required=True, help="Set to measure on.")
@click.option("--iterations", type=click.IntRange(0), default=0, help="Instead of the configuration's.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option("--device", type=DEVICE, default="auto", show_default=True, help="cpu, cuda, or auto.")
@click.option("--ratio", type=float, default=0.02, show_default=True, help="Boundary width / image diagonal.")
@click.option("--set", "overrides", nargs=2, multiple=True, metavar="KEY VALUE", help="Override a configuration key.")
@click.option("--rows", "pictures", type=click.IntRange(0), default=4, show_default=True, help="Images in the picture.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("var/beside"),
    show_default=True,
    help="Folder of models and report; a run goes on there.",
)
@json_option
def beside(
    overrides: tuple[tuple[str, str], ...], pictures: int, out: Path, as_json: bool, device: str, **options: Any
) -> None:
    """Train Mask Transfiner and Mask R-CNN on the same backbone, schedule and seed; print AP and boundary AP.

    \b
    Example: transfiner benchmark beside --train-set via:balloon/train:balloon --test-set via:balloon/val:balloon
    """
    from model.predictor import choose_device
    from training.benchmark.baseline import (
        Trial,
        baseline_report_markdown,
        compare_methods,
        predict_both,
        train_both,
        write_baseline_report,
    )
    from training.benchmark.runner import BenchmarkStopped
    from training.datasets import open_set

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    trial = Trial(
        device=str(choose_device(device)), overrides=tuple(part for pair in overrides for part in pair), **options
    )
    try:
        images = 2 * len(open_set(trial.test))  # opened before hours of training, not after
        checkpoints = train_both(trial, out, _tell)
        with click.progressbar(length=images, label=f"measuring {trial.test}", file=sys.stderr) as bar:
            truth, results, rows = predict_both(trial, checkpoints, pictures=pictures, progress=lambda: bar.update(1))
    except (BenchmarkStopped, ValueError, FileNotFoundError, KeyError) as error:
        raise click.ClickException(str(error)) from error
    outcome = compare_methods(truth, results, ratio=trial.ratio)
    write_baseline_report(out, trial, outcome, rows)
    print_result(outcome, baseline_report_markdown(trial, outcome), as_json)


@click.command()
@click.option(
    "--weights",
    type=CHECKPOINT,
    default=SCENES_MODEL,
    help="Checkpoint directory of the shared detector; scenes-small by default.",
)
@click.option(
    "--table",
    "tables",
    type=click.Choice(["2", "4", "5", "6", "8"]),
    multiple=True,
    help="Only this table; repeatable.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Wall clock to fit the training steps to, timed at the start.",
)
@click.option(
    "--steps", type=click.IntRange(0), default=0, help="Of each training, instead of what fits into --minutes."
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Trainings of every row.")
@click.option("--scenes", type=click.IntRange(1), default=300, show_default=True, help="Training scenes.")
@click.option("--images", type=click.IntRange(1), default=40, show_default=True, help="Held-out scenes.")
@click.option(
    "--coarse-steps",
    type=click.IntRange(1),
    default=300,
    show_default=True,
    help="In which the shared coarse mask first gets used to its smaller grid.",
)
@click.option("--processes", type=click.IntRange(0), default=0, help="One thread each; 0: one a core.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("var/benchmark/directions"),
    show_default=True,
    help="Folder of the run; the same command goes on there.",
)
@click.option("--dry-run", is_flag=True, help="Only say what it needs.")
@json_option
def directions(
    weights: Path, out: Path, tables: tuple[str, ...], processes: int, dry_run: bool, as_json: bool, **scale: Any
) -> None:
    """Show in which direction the rows of Tables 2, 4, 5, 6 and 8 differ, in half an hour on a CPU.

    All rows start from one shared, frozen detector; only their mask heads are trained, at half the paper's sides.
    Differences are paired by scene and seed and come with intervals; what is not significant is called so.

    \b
    Example: transfiner benchmark directions --minutes 30 --seeds 3
    """
    from training.benchmark.ablations.plan import TABLE_NUMBERS, Setting, plan
    from training.benchmark.ablations.report import write_ablation_report

    numbers = tuple(sorted(map(int, tables))) or TABLE_NUMBERS
    chosen = Setting(weights, out, numbers, processes=processes or os.cpu_count() or 1, **scale)
    if dry_run:
        planned = plan(chosen)
        print_result(planned, _plan_text(planned), as_json)
        return
    report = _run_ablations(chosen)
    if report is None:
        raise click.ClickException("no seed is complete yet; the same command goes on")
    print_result(report, write_ablation_report(out, report)[1].read_text(encoding="utf-8"), as_json)


def _run_ablations(chosen: Any) -> dict[str, Any] | None:
    from training.benchmark.ablations.plan import planned_steps
    from training.benchmark.ablations.report import build_ablation_report, summary, write_ablation_report
    from training.benchmark.ablations.run import run_ablations

    latest: list[dict[str, Any]] = []

    def after_seed(seeds: int) -> None:
        latest.append(build_ablation_report(chosen, planned_steps(chosen), seeds))
        write_ablation_report(chosen.folder, latest[-1])
        click.echo(f"{seeds} of {chosen.seeds} seeds: {summary(latest[-1])} {chosen.folder / 'report.md'}", err=True)

    run_ablations(chosen, _tell, after_seed)
    return latest[-1] if latest else None


def _plan_text(planned: dict[str, Any]) -> str:
    return (
        f"Tables {', '.join(map(str, planned['tables']))}: {planned['rows']} rows, {planned['trainings']} trainings of "
        f"mask heads ({planned['seeds']} seeds), {planned['measurements']} measurements on {planned['images']} scenes\n"
        f"data: nothing to download; {planned['scenes']} training scenes are drawn, {planned['disk_mb']} MB on disk\n"
        f"steps of each training: {planned['steps']}\n"
        f"time: about {planned['minutes']:g} minutes with {planned['processes']} processes of one thread; no GPU"
    )


@click.command()
@click.option("--config", default="released/R50-FPN", show_default=True, help="Of Mask Transfiner.")
@click.option(
    "--instances",
    type=click.IntRange(1),
    multiple=True,
    default=(50, 100),
    show_default=True,
    help="Detections that are kept; repeatable.",
)
@click.option(
    "--nodes",
    type=click.IntRange(1),
    default=364,
    show_default=True,
    help="Nodes of each of our instances, beside 196 reference points.",
)
@size_option
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Turns; the median counts.")
@click.option("--training/--no-training", default=False, help="Also a training step beside Mask R-CNN's.")
@click.option(
    "--precision",
    type=click.Choice(("fp32", "bf16")),
    default="fp32",
    show_default=True,
    help="bf16: also all three in bf16 on a CPU, and PointRend with the detected class alone; processor seconds.",
)
@click.option("--device", type=DEVICE, default="cpu", show_default=True)
@threads_option
@json_option
def networks(
    config: str,
    instances: tuple[int, ...],
    nodes: int,
    size: tuple[int, int],
    repeats: int,
    training: bool,
    precision: str,
    device: str,
    threads: int,
    as_json: bool,
) -> None:
    """Time and count Mask Transfiner, Mask R-CNN and PointRend whole, as ratios from one run.

    \b
    Example: transfiner benchmark networks --instances 50 --instances 100 --training
    """
    from training.benchmark.cost.comparison import CostSetting, compare_networks, compare_training, network_costs_text
    from training.distributed import keep_freed_memory

    limit_threads(threads)
    keep_freed_memory(device)
    setting = CostSetting(config, height=size[0], width=size[1], device=device, repeats=repeats)
    inference = compare_networks(setting, instances=instances, nodes=nodes, precision=precision, tell=_tell)
    learned = compare_training(setting, tell=_tell) if training else None
    outcome = {"inference": inference, "training": learned}
    print_result(outcome, network_costs_text(inference, learned), as_json)


@click.command()
@click.option("--weights", type=CHECKPOINT, default=SCENES_MODEL, help="Checkpoint; the scenes' model by default.")
@click.option(
    "--set", "name", default="scenes:val:200", show_default=True, help="The model's own validation set, by name."
)
@click.option("--ratio", type=float, default=0.02, show_default=True, help="Boundary width / image diagonal.")
@click.option("--threads", type=click.IntRange(0), default=1, show_default=True, help="0: the machine's.")
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
    try:
        samples = open_set(name)
        with click.progressbar(length=len(samples), label=f"measuring {name}", file=sys.stderr) as bar:
            outcome = compare_precisions(weights, samples, ratio=ratio, progress=lambda: bar.update(1))
    except (ValueError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    if card:
        # Folders of one machine say nothing on another.
        short = ":".join(Path(part).name for part in name.split(":"))
        command = f"transfiner benchmark precision --weights {weights.name} --set {short} --card"
        record_precision(weights, outcome, short, command)
    print_result(outcome, precision_markdown(outcome, name), as_json)


TABLE_NUMBERS = [str(number) for number in range(1, 13)]
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


class BenchmarkGroup(SuggestingGroup):
    """A group whose commands are the tables' numbers beside the named ones."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*TABLE_NUMBERS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return table if cmd_name in TABLE_NUMBERS else super().get_command(ctx, cmd_name)


@click.group(cls=BenchmarkGroup, context_settings={"help_option_names": ["-h", "--help"]})
def benchmark() -> None:
    """Reproduce a table of the paper, or measure cost, speed and incoherent regions.

    \b
    Example: transfiner benchmark 5 --data ~/coco --dry-run
    """


@click.command("1..12")
@click.option("--data", type=click.Path(file_okay=False), default="", help="Folder of the data set.")
@click.option("--train-set", default="", help="Another training set, scenes:SPLIT:COUNT or coco:FILE:FOLDER/.")
@click.option("--test-set", default="", help="Another set to measure on.")
@click.option("--lvis", default="", help="LVIS annotations of the test images, for AP*.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("var/benchmark"),
    show_default=True,
    help="Folder of models, results and reports; a run goes on there.",
)
@click.option("--checkpoints", type=_FOLDER, help="Folder with a checkpoint per row, loaded instead of trained.")
@click.option("--row", "rows", multiple=True, help="Only this row (its key); repeatable.")
@click.option("--iterations", type=click.IntRange(0), default=0, help="Instead of the schedule's; 0: the schedule's.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Trainings of every row.")
@click.option("--init", default="", help='Where weights start: "imagenet" or a checkpoint directory.')
@click.option("--device", type=DEVICE, default="auto", show_default=True, help="cpu, cuda, or auto.")
@click.option(
    "--speed-iterations", type=click.IntRange(0), default=0, help="Of a run of frames per second; 0: 200 (CPU 20)."
)
@click.option("--speed-runs", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--miniature", is_flag=True, help="Generated scenes and a tiny network: minutes, and no claim about COCO."
)
@click.option("--dry-run", is_flag=True, help="Only say what it needs: data, hours, GPU memory.")
@json_option
@click.pass_context
def table(
    ctx: click.Context,
    out: Path,
    checkpoints: Path | None,
    rows: tuple[str, ...],
    speed_iterations: int,
    speed_runs: int,
    dry_run: bool,
    as_json: bool,
    **scale_options: Any,
) -> None:
    """Train or load what a table compares, measure it, and write report.json, report.md and plots.

    \b
    Example: transfiner benchmark 2 --miniature --iterations 20
    """
    from training.benchmark.runner import plan_table, plan_text
    from training.benchmark.tables import TABLES

    chosen = TABLES[int(str(ctx.info_name))]
    scale = _scale(scale_options)
    if dry_run:
        planned = plan_table(chosen, scale)
        print_result(planned, plan_text(planned), as_json)
        return
    report = _run_table(chosen, out, scale, rows, checkpoints, (speed_iterations or None, speed_runs))
    folder = out / f"table-{chosen.number}"
    print_result(report, (folder / "report.md").read_text(encoding="utf-8"), as_json)


def _scale(options: dict[str, Any]) -> Any:
    from model.predictor import choose_device
    from training.benchmark.recipe import Scale

    device = str(choose_device(options.pop("device")))
    return Scale(train=options.pop("train_set"), test=options.pop("test_set"), device=device, **options)


def _run_table(
    chosen: Any, out: Path, scale: Any, rows: tuple[str, ...], checkpoints: Path | None, speed: tuple[int | None, int]
) -> dict[str, Any]:
    from training.benchmark.recipe import data_of
    from training.benchmark.report import build_table_report, write_table_report
    from training.benchmark.runner import BenchmarkStopped, missing_files, run_table

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    data = data_of(chosen, scale)
    absent = missing_files(*([] if checkpoints else [data.train]), data.test)
    if absent:
        raise click.ClickException(
            f"table {chosen.number} needs {data.needs}; missing: {', '.join(absent)}. Give the folder with --data, "
            "other sets with --train-set and --test-set, or --miniature"
        )
    try:
        results = run_table(chosen, out, scale, only=rows, checkpoints=checkpoints, speed=speed, tell=_tell)
    except (BenchmarkStopped, ValueError) as error:
        raise click.ClickException(str(error)) from error
    setting = {
        "train": data.train,
        "test": data.test,
        "device": scale.device,
        "seeds": scale.seeds,
        "miniature": scale.miniature,
        "iterations": scale.iterations or "the schedule's",
    }
    report = build_table_report(chosen, results, setting=setting)
    write_table_report(out / f"table-{chosen.number}", report)
    return report


@benchmark.command()
@click.option("--config", default=None, help="Configuration with random weights, for instance released/R50-FPN.")
@click.option("--weights", type=CHECKPOINT, help="Checkpoint directory or name.")
@size_option
@click.option(
    "--instances",
    type=click.IntRange(0),
    default=100,
    show_default=True,
    help="Detections that are kept; 0: as many as the network finds.",
)
@click.option("--nodes", type=click.IntRange(1), default=None, help="Nodes of each instance; default: what it finds.")
@click.option("--device", type=DEVICE, default="cpu", show_default=True)
@click.option("--iterations", type=click.IntRange(1), default=None, help="Of a run; default 200, on a CPU 20.")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--speed/--no-speed", default=True, help="Measure frames per second.")
@click.option("--whole/--refinement-only", default=True)
@json_option
def cost(
    config: str | None,
    weights: Path | None,
    size: tuple[int, int],
    instances: int,
    nodes: int | None,
    device: str,
    whole: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Count operations, parameters and peak memory, and measure frames per second.

    \b
    Example: transfiner benchmark cost --config paper --instances 10 --nodes 560 --no-speed
    """
    from model.checkpoints.checkpoint import load_checkpoint
    from training.benchmark.cost.comparison import CostSetting, costs_text, refinement_cost, whole_cost
    from training.engine.config import get_training_config

    if (config is None) == (weights is None):
        raise click.UsageError("choose one network: --config NAME or --weights DIRECTORY")
    cfg = load_checkpoint(weights).cfg if weights else get_training_config(str(config))
    reference = cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION**2 * cfg.MODEL.TRANSFINER.REFERENCE_POINTS
    lengths = [(nodes or 560) + reference] * max(instances, 1)
    alone = refinement_cost(cfg, lengths, channels=cfg.MODEL.FPN.OUT_CHANNELS)
    entire = None
    if whole:
        setting = CostSetting(config, weights, height=size[0], width=size[1], device=device)
        entire = whole_cost(setting, instances=instances, nodes=nodes, **options)
    outcome = {"refinement": alone, "whole": entire}
    print_result(outcome, costs_text(alone, entire), as_json)


@benchmark.command()
@click.option("--instances", type=click.IntRange(1), default=10, show_default=True)
@click.option("--nodes", type=click.IntRange(1), default=560, show_default=True, help="Nodes of each instance.")
@click.option("--config", default="released/R50-FPN", show_default=True)
@size_option
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Turns; the median counts.")
@click.option("--device", type=DEVICE, default="cpu", show_default=True)
@threads_option
@json_option
def speed(
    config: str, size: tuple[int, int], device: str, repeats: int, threads: int, as_json: bool, **counts: Any
) -> None:
    """Time the mask head beside the authors' way and Mask R-CNN's head, as ratios from one run.

    \b
    Example: transfiner benchmark speed --instances 10 --nodes 4000
    """
    from training.benchmark.cost.comparison import CostSetting, compare_heads, head_costs_text
    from training.distributed import keep_freed_memory

    limit_threads(threads)
    keep_freed_memory(device)
    setting = CostSetting(config, height=size[0], width=size[1], device=device, repeats=repeats)
    outcome = compare_heads(setting, **counts)
    print_result(outcome, head_costs_text(outcome), as_json)


@benchmark.command()
@click.option("--weights", type=CHECKPOINT, required=True, help="Checkpoint directory or name.")
@click.option("--set", "name", default="scenes:val:50", show_default=True, help="Set, scenes:... or coco:FILE:FOLDER/.")
@click.option("--device", type=DEVICE, default="cpu", show_default=True)
@json_option
def regions(weights: Path, name: str, device: str, as_json: bool) -> None:
    """Analyse incoherent regions: what Tables 1 and 3 ask, for any model and set.

    \b
    Example: transfiner benchmark regions --weights model/weights/scenes-small --set scenes:val:50
    """
    from training.benchmark.cost.subjects import open_network
    from training.datasets import open_set
    from training.evaluation.incoherence_analysis import analyse

    network, cfg = open_network(weights=weights, device=device, overrides=["MODEL.TRANSFINER.KEEP_COARSE", True])
    samples = open_set(name)
    with click.progressbar(length=len(samples), label=f"analysing {name}", file=sys.stderr) as bar:
        outcome = analyse(network, cfg, samples, progress=lambda _: bar.update(1))
    print_result(outcome, _regions_text(outcome), as_json)


def _regions_text(outcome: dict[str, Any]) -> str:
    table1 = outcome["table1"]
    lines = [
        f"{outcome['images']} images, {table1['objects']:.0f} matched objects",
        f"Table 1: incoherent regions cover {100 * table1['percent']:.1f} % of a box and hold "
        f"{100 * table1['recall_err']:.1f} % of its errors; coarse masks are right in "
        f"{100 * table1['accuracy']:.1f} % of them",
        f"         mask AP {100 * table1['ap_coarse']:.1f} coarse, {100 * table1['ap_gt']:.1f} with the truth in "
        "the regions",
    ]
    for level, figures in (outcome["table3"] or {}).items():
        named = ", ".join(f"{key} {100 * value:.1f} %" for key, value in figures.items())
        lines.append(f"Table 3, {level:>6}: {named}")
    return "\n".join(lines)


benchmark.add_command(anytime)
benchmark.add_command(directions)
benchmark.add_command(beside)
benchmark.add_command(networks)
benchmark.add_command(precision)
benchmark.add_command(fewshot)
benchmark.add_command(capacity)
