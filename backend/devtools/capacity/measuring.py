"""All figures of this machine, one part after the other; what cannot be measured is left out with the reason."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.devtools.capacity import service_times
from backend.devtools.capacity.figures import Figures, LabelStudioFigures, now, this_machine
from backend.devtools.capacity.label_studio_costs import LabelStudioCosts, label_studio
from backend.devtools.capacity.queue_costs import bytes_of_waiting, queue_figures
from backend.devtools.capacity.service_times import Report
from backend.devtools.load.measuring import HEIGHT_PX, WIDTH_PX, ServedModelRun
from backend.errors import ServiceError
from backend.settings import load_settings

Json = dict[str, Any]
PICTURES = f"generated scenes, {WIDTH_PX} x {HEIGHT_PX} px, PNG"


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        batch_sizes: tasks of a batch; the largest is also that of the check with many tasks.
        batches: of each size.
        pictures: different ones, which are also the tasks of the check.
        tasks: of the queue's own limit, and of Label Studio's imports.
        singles: requests of one task.
        retrieved: predictions that Label Studio asks for.
    """

    batch_sizes: tuple[int, ...] = (1, 2, 4, 8)
    batches: int = 30
    pictures: int = 48
    tasks: int = 1000
    singles: int = 200
    retrieved: int = 200


@dataclass
class CapacityMeasurement:
    """Figures of the machine that this runs on.

    Args:
        model: checkpoint directory; None: a model that costs nothing in its place, for tests.
        with_label_studio: whether to start one.
        tell: hears what goes on.
    """

    model: Path | None
    sizes: Sizes
    with_label_studio: bool
    tell: Report
    _missing: dict[str, str] = field(default_factory=dict)

    def run(self) -> Figures:
        """Takes minutes.

        Raises:
            StartError: a part of the service does not start, or batches come apart.
        """
        machine = this_machine()
        files = service_times.scene_files(self.sizes.pictures)
        self.tell("starting the service")
        with ServedModelRun(self.model, files, max(self.sizes.batch_sizes)) as service:
            machine.device = service_times.device(service)
            name = service_times.model_name(service.stage.model)
            batches = service_times.batch_seconds(service, self.sizes.batch_sizes, self.sizes.batches, self.tell)
            self.tell("many tasks at once")
            together, bytes_finished = service_times.many_tasks_seconds(service, batches[1])
            rows = service_times.predictions(service, self.sizes.pictures)
            config = service.config
        bytes_waiting = bytes_of_waiting(config, self.sizes.tasks)
        with ServedModelRun(None, files, load_settings().max_batch) as stub:
            queue = queue_figures(stub, self.sizes.tasks, self.sizes.singles, bytes_finished, bytes_waiting, self.tell)
            imported = self._label_studio(stub, rows, config, files)
        machine.load_after = round(os.getloadavg()[0], 2)
        return Figures(
            taken=now(),
            machine=machine,
            model=name,
            pictures=PICTURES,
            image_bytes=round(sum(map(len, files)) / len(files), 1),
            batches=batches,
            together=together,
            queue=queue,
            label_studio=imported,
            not_measured=self._missing,
        )

    def _label_studio(
        self, stub: ServedModelRun, rows: Sequence[Json], config: str, files: Sequence[bytes]
    ) -> LabelStudioFigures | None:
        if not self.with_label_studio:
            self._missing["label_studio"] = "left out (--no-label-studio)"
            return None
        try:
            with label_studio(self.tell) as (server, pid):
                costs = LabelStudioCosts(server, pid, stub, rows, config, files, self.tell)
                return costs.measure(self.sizes.tasks, self.sizes.retrieved)
        except ServiceError as error:
            # The other figures took minutes; they are of use without this one.
            self._missing["label_studio"] = str(error)
            return None
