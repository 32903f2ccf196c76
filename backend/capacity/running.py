"""Both steps of `transfiner benchmark capacity`: figures, then a simulation of every load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from backend.capacity.arrivals import FLAT, OFFICE, Arrivals, Load
from backend.capacity.busy import by_processor_time
from backend.capacity.figures import Figures, read_figures
from backend.capacity.limits import account
from backend.capacity.report import FIGURES, Assumptions, Check, Outcome
from backend.capacity.simulation import Rules, Simulation
from backend.capacity.sizing import Sizing
from backend.errors import StartError
from backend.settings import load_settings

Told = Callable[[str], object]
PROFILES = {"office": OFFICE, "flat": FLAT}
# Many courses, so that one drawn batch more or less says nothing.
CHECKS = 20


def run(options: dict[str, Any], out: Path, told: Told) -> Outcome:
    """With the command's options.

    Raises:
        StartError: an option or a file of figures is wrong, or the service does not start.
    """
    settings = load_settings(max_batch=options["max_batch"], max_wait_ms=options["max_wait_ms"])
    hours = profile(options["profile"])
    figures = read_figures(options["figures"]) if options["figures"] else _measure(options, out, told)
    used = by_processor_time(figures) if options["processor_time"] else figures
    times = used.batch_times()
    if settings.max_batch > times.largest:
        raise StartError(
            f"Batches of up to {settings.max_batch} tasks were asked for; the largest measured were of "
            f"{times.largest}.",
            "Choose a smaller --max-batch (TRANSFINER_MAX_BATCH).",
        )
    check = _check(used)
    rate = options["images_a_second"]
    times = times.with_images_a_second(rate) if rate else times.slowed(check.slowed_by if check else 1.0)
    rules = Rules(1, settings.max_batch, settings.max_wait_ms / 1000)
    sizing = Sizing(times, rules, options["target_s"], options["seed"], told)
    loads = []
    for images in sorted(set(options["images"])):
        load = Load(images, hours, options["bulk_share"], options["interactive_share"])
        try:
            sized = sizing.size(load)
        except ValueError as error:
            raise StartError(f"{images:,} images a day cannot be simulated: {error}.") from error
        loads.append((sized, account(sized, used, settings, options["disk_tb"] * 1e12)))
    names = ("bulk_share", "interactive_share", "target_s", "workers_a_host", "disk_tb", "images_a_second",
             "processor_time", "seed")  # fmt: skip
    said = Assumptions(
        profile=options["profile"], peak_factor=Load(1, hours).peak_factor, max_batch=settings.max_batch,
        max_wait_ms=settings.max_wait_ms, **{name: options[name] for name in names},
    )  # fmt: skip
    return Outcome(figures, said, loads, check)


def _measure(options: dict[str, Any], out: Path, told: Told) -> Figures:
    from backend.capacity.measuring import Measuring, Sizes

    sizes = Sizes(
        batches=options["batches"],
        tasks=options["tasks"],
        singles=max(10, options["tasks"] // 5),
        retrieved=max(10, options["tasks"] // 5),
    )
    figures = Measuring(options["model"], sizes, options["with_label_studio"], told).run()
    out.mkdir(parents=True, exist_ok=True)
    (out / FIGURES).write_text(figures.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return figures


def _check(figures: Figures) -> Check | None:
    """One simulated worker that finds as many waiting tasks as the real one did."""
    if figures.together is None:
        return None
    tasks = figures.together.tasks
    waiting = Arrivals(np.zeros(tasks), np.zeros(tasks, int), np.zeros(tasks, bool), np.zeros(tasks, bool))
    rules = Rules(1, figures.together.max_batch)
    courses = [Simulation(waiting, figures.batch_times(), rules, seed).run() for seed in range(CHECKS)]
    simulated = float(np.mean([tasks / course.ended_s.max() for course in courses]))
    return Check(figures.together.tasks_a_second, simulated)


def profile(text: str) -> tuple[float, ...]:
    """24 weights.

    Raises:
        StartError: neither a known name nor 24 numbers.
    """
    if text in PROFILES:
        return PROFILES[text]
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        weights = ()
    if len(weights) != 24 or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise StartError(
            f"--profile is {text!r}: neither {' nor '.join(PROFILES)} nor 24 weights that are not negative.",
            "Give 24 numbers separated by commas, the hours from midnight on.",
        )
    return weights
