"""The report for people, from its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]
NONE = "not measured"


def as_markdown(report: Json) -> str:
    """Figures, needs, limits."""
    parts = [_head(report), _measured(report), _needs(report), *map(_limits, report["loads"])]
    return "\n\n".join(parts) + "\n"


def _head(report: Json) -> str:
    machine, said = report["figures"]["machine"], report["assumptions"]
    network = (
        f"**Assumed, not measured**: a network that takes {said['images_a_second']:g} images a second."
        if said["images_a_second"]
        else "The network's seconds are those measured here."
    )
    if said["processor_time"]:
        network += (
            " **Estimated**: the machine was busy, so for what is simulated and compared the processor time that was "
            "used, as on one free core, stands for longer seconds."
        )
    return "\n".join(
        [
            "# Capacity",
            "",
            f"Measured {report['figures']['taken']} on {machine['cores']} cores ({machine['processor']}, "
            f"{machine['memory_gib']:g} GiB), network on {machine['device'] or NONE}; load average "
            f"{machine['load_before']:g} before and {machine['load_after']:g} after. "
            f"Model {report['figures']['model']}, {report['figures']['pictures']}.",
            "",
            f"{network} Other assumptions: day `{said['profile']}` (busiest hour {said['peak_factor']:.2f} times the "
            f"mean), {said['bulk_share']:.0%} of the tasks in requests of 450, {said['interactive_share']:.0%} of the "
            f"others interactive, batches of up to {said['max_batch']}, {said['workers_a_host']} worker(s) a host, "
            f"{said['disk_tb']:g} TB of disk, seed {said['seed']}.",
        ]
    )


def _measured(report: Json) -> str:
    figures = report["figures"]
    rows = [
        (
            f"batch of {size}",
            *(_ms(rows, name, int(size)) for name in ("images_s", "model_s", "regions_s", "processor_s")),
            len(rows),
        )
        for size, rows in figures["batches"].items()
    ]
    lines = [
        "Median ms a task:",
        "",
        *_table(("", "images", "network", "outlines", "worker's processor", "batches"), rows),
        "",
    ]
    lines += _queue_lines(figures["queue"]) + _label_studio_lines(figures["label_studio"])
    lines += [f"- {NONE}: {name}: {why}" for name, why in figures["not_measured"].items()]
    lines += [f"- HTTP and queue add {report['overhead_s'] * 1000:.0f} ms to a lone task (median)"]
    return "\n".join([*lines, *_check_lines(report)])


def _check_lines(report: Json) -> list[str]:
    one = report["check"]
    if one is None:
        return []
    real = report["figures"]["together"]
    used = (
        "not used, since the network is assumed"
        if report["assumptions"]["images_a_second"]
        else f"so all seconds above are multiplied by {one['slowed_by']:.2f} in the simulation"
    )
    return [
        f"- check: {real['tasks']} waiting tasks, batches of up to {real['max_batch']}: one real worker does "
        f"{one['measured']:.2f} tasks a second. Simulated from batches measured alone it does "
        f"{one['simulated']:.2f}, because overlapping stages share the processor: {used}"
    ]


def _ms(rows: Sequence[Json], name: str, size: int) -> str:
    ordered = sorted(one[name] for one in rows)
    return f"{ordered[len(ordered) // 2] / size * 1000:.1f}"


def _queue_lines(queue: Json | None) -> list[str]:
    if queue is None:
        return [f"- queue and API: {NONE}"]
    bulk, single = queue["bulk"], queue["single"]
    return [
        f"- queue and HTTP with a model that costs nothing: {queue['tasks_a_second']:g} tasks a second",
        f"- processor ms a task in bulk (alone): API {bulk['api']:.2f} ({single['api']:.2f}), queue server "
        f"{bulk['queue_server']:.2f} ({single['queue_server']:.2f}), worker {bulk['worker']:.2f} "
        f"({single['worker']:.2f})",
        f"- bytes in the queue server: {queue['bytes_waiting']:.0f} a waiting task, {queue['bytes_finished']:.0f} a "
        "finished one",
    ]


def _label_studio_lines(one: Json | None) -> list[str]:
    if one is None:
        return [f"- Label Studio: {NONE}"]
    return [
        f"- Label Studio {one['version']} ({one['database']}), a second: {one['tasks_imported_a_second']:g} tasks, "
        f"{one['uploads_a_second']:g} uploaded images, {one['predictions_imported_a_second']:g} predictions by bulk "
        f"import, {one['predictions_retrieved_a_second']:g} that it asks for by itself",
        f"- bytes in its database: {one['bytes_a_task']:.0f} a task, {one['bytes_a_prediction']:.0f} a prediction of "
        f"{one['regions_a_prediction']:g} regions",
    ]


def _needs(report: Json) -> str:
    target_s = report["assumptions"]["target_s"]
    rows = []
    for one in report["loads"]:
        peak, day, fewer = one["peak"], one["day"], one["one_worker_fewer"]
        rows.append(
            (f"{one['images_a_day']:,.0f}", f"{one['peak_rate']:.3g}", f"**{one['workers']:,}**", f"{one['hosts']:,}",
             f"{peak['utilization']:.0%}", f"{day['utilization']:.0%}" if day else "",
             " / ".join(f"{peak[f'wait_p{p}_s']:.3g}" for p in (50, 95, 99)), f"{peak['answer_p95_s']:.3g}",
             _or_nothing(peak["bulk_answer_p95_s"]),
             f"{peak['depth_p95']:.0f} / {peak['depth_most']:,}", _or_nothing(fewer and fewer["wait_p95_s"]),
             one["simulated"])
        )  # fmt: skip
    head = ("images a day", "tasks/s at the peak", "workers", "hosts", "busy at the peak", "over the day",
            "wait p50 / p95 / p99, s", "recorded p95, s", "of bulk, s", "waiting tasks p95 / most",
            "p95 with one fewer", "simulated")  # fmt: skip
    text = f"Fewest workers with which 95 % of the single tasks wait at most {target_s:g} s at the peak:"
    return "\n".join([text, "", *_table(head, rows)])


def _limits(one: Json) -> str:
    rows = [
        (f"{row['part']}: {row['name']}", NONE if row["share"] is None else _share(row["share"]), row["how"],
         row["instances"] or "", f"{row['full_at_images_a_day']:,.0f}" if row["full_at_images_a_day"] else "")
        for row in one["limits"]
    ]  # fmt: skip
    held = one["storage"]
    database = f"{held['database'] / 1e9:,.1f} GB" if held["database"] is not None else NONE
    return "\n".join(
        [
            f"## {one['images_a_day']:,.0f} images a day",
            "",
            f"Gives first: **{one['first'] or NONE}**. A year: images {held['images'] / 1e12:,.3g} TB, "
            f"Label Studio's database {database}.",
            "",
            *_table(
                ("of one instance", "share", "", "instances, 70 % each", "all taken at images a day"), rows
            ),
        ]
    )


def _or_nothing(number: float | None) -> str:
    return "" if number is None else f"{number:.3g}"


def _share(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else f"{share:,.1f} times"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]
