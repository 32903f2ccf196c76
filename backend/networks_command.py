"""`transfiner benchmark networks`: whole networks beside one another."""

from __future__ import annotations

import json

import click


class _Steps:
    """Counts the runs: each network once for its operations, once for its operators, on a GPU once for its
    memory, once to warm up, and each turn."""

    def __init__(self, instances: tuple[int, ...], training: bool, repeats: int, device: str) -> None:
        runs = 3 + device.startswith("cuda") + repeats
        self.total = (3 * len(instances) + 2 * training) * runs
        self.done = 0

    def __call__(self, what: str) -> None:
        self.done += 1
        click.echo(f"{self.done} of {self.total}: {what}", err=True)


@click.command()
@click.option("--config", default="released/R50-FPN", show_default=True, help="Of Mask Transfiner.")
@click.option("--instances", type=click.IntRange(1), multiple=True, default=(50, 100), show_default=True,
              help="Detections that are kept; repeatable.")  # fmt: skip
@click.option("--nodes", type=click.IntRange(1), default=364, show_default=True,
              help="Nodes of each of our instances, beside 196 reference points.")  # fmt: skip
@click.option(
    "--size", nargs=2, type=click.IntRange(32), default=(800, 1216), show_default=True, help="Height, width."
)
@click.option(
    "--repeats", type=click.IntRange(1), default=3, show_default=True, help="Turns; the median counts."
)
@click.option("--training/--no-training", default=False, help="Also a training step beside Mask R-CNN's.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(0), default=2, show_default=True, help="0: the machine's.")
@click.option(
    "--keep-memory/--return-memory",
    default=True,
    show_default=True,
    help="On a CPU: use freed memory again, as training and evaluation do here, or leave it to the C library.",
)
@click.option("--json", "as_json", is_flag=True)
def networks(config: str, instances: tuple[int, ...], nodes: int, size: tuple[int, int], repeats: int,
             training: bool, device: str, threads: int, keep_memory: bool, as_json: bool) -> None:  # fmt: skip
    """Time and count Mask Transfiner, Mask R-CNN and PointRend whole, as ratios from one run.

    \b
    Example: transfiner benchmark networks --instances 50 --instances 100 --training
    """
    import torch

    from training.cost.networks import as_text, compare_networks, compare_training
    from training.host_memory import keep_freed_memory

    if threads:
        torch.set_num_threads(threads)
    if keep_memory:
        keep_freed_memory(device)
    common = {"height": size[0], "width": size[1], "repeats": repeats, "device": device}
    tell = _Steps(tuple(instances), training, repeats, device)
    inference = compare_networks(config, instances=instances, nodes=nodes, tell=tell, **common)  # type: ignore[arg-type]
    learned = compare_training(config, tell=tell, **common) if training else None  # type: ignore[arg-type]
    outcome = {"inference": inference, "training": learned, "keep_memory": keep_memory}
    memory = "kept for the next tensor" if keep_memory else "left to the C library"
    text = f"{as_text(inference, learned)}\nfreed memory was {memory}"
    click.echo(json.dumps(outcome) if as_json else text)
