"""Answering /predict: tasks become jobs, jobs become results in task order, or a later push.

What Label Studio does with answers decides the form: the number of results must be the
number of tasks, an item may be a list, an empty one stores nothing. So a failed task is `[]`: the others of its batch
are stored, nothing false is stored for it, and it is asked for again once its cause is gone. The reason stands beside
the results under `errors`, in the log and at /jobs.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from redis import Redis, RedisError

from backend.errors import BadRequestError, DeadlineError, QueueUnavailableError, TaskError, UnsupportedConfigError
from backend.predictions.projects import PredictRequest, Project, Projects, TaskItem, output_settings
from backend.predictions.promises import PromiseKeeper
from backend.predictions.prompts import PromptMemory, chosen_regions
from backend.queue.delivery import DeliveryClaim, DeliveryClaims
from backend.queue.job_queue import JobQueue, PredictionJob, Requester
from backend.queue.job_store import JobOutcome
from backend.settings import Settings
from backend.versions.resolve import ServedModel, project_notice, prompt_version
from integration.images.fetch import image_value
from integration.label_studio.label_config import LabelConfig, parse_label_config
from integration.label_studio.prompts import PromptError, read_prompt, region_ids, require_place, with_earlier
from model.errors import ImageError

log = logging.getLogger(__name__)
# Label Studio's placeholder for the only image of tasks that were uploaded before the project had a label config.
UNDEFINED_KEY = "$undefined$"
# Threads that must stay free for /health, /setup and webhooks while others wait for predictions.
SPARE_THREADS = 8
DEFERRED: dict[str, Any] = {"results": []}
# A second request for the same task is answered this long after the first, in s: Label Studio has stored it by then.
STORE_S = 0.3
# A longer value of a task's image key is not an address but the image itself.
LONGEST_ADDRESS = 4096
# A claim outlives its request's deadline by at least this, in s: on a busy machine the work after the deadline takes a
# while. A task whose claim has ended all the same is deferred, unless another request has claimed it by then.
CLAIM_GRACE_S = 5.0


class Predictions:
    """The service behind /predict."""

    def __init__(self, connection: Redis, settings: Settings) -> None:
        self.settings = settings
        self.queue = JobQueue(connection, settings)
        self.deliveries = DeliveryClaims(connection)
        self.projects = Projects(connection)
        self.prompted = PromptMemory(connection)
        file = settings.promises_folder / f"{settings.port}.sqlite3"
        self.promises = PromiseKeeper(self.queue, self.deliveries, self.projects, file)
        self._places = max(1, settings.api_threads - SPARE_THREADS)
        self._waiting = threading.BoundedSemaphore(self._places)

    def answer(
        self, request: PredictRequest, model: ServedModel, request_id: str, requester: Requester | None = None
    ) -> dict[str, Any]:
        """The body for Label Studio.

        Args:
            requester: knows whether the client hung up; its tasks are dropped then, unless they can be pushed later.

        Raises:
            UnsupportedConfigError: the label config has nothing that this model can fill, in a request with a prompt or
                without a project. (A project's tasks get empty predictions that say so.)
            TaskError, DeadlineError: an interactive request could not be answered.
        """
        if len(request.tasks) > self.settings.max_tasks_per_request:
            raise BadRequestError(
                f"{len(request.tasks)} tasks in one request; at most {self.settings.max_tasks_per_request} are taken.",
                "Select fewer tasks, or raise TRANSFINER_MAX_TASKS_PER_REQUEST.",
            )
        project = self.projects.get(request.project) if request.project else Project(key="")
        xml = request.label_config or project.label_config
        requester = requester or Requester()
        if request.params.context is not None:
            if version := prompt_version(self.settings):
                return self._prompted(project, request, version, request_id, xml, requester)
            jobs = self.jobs(project, request.tasks, model, request_id, label_config=xml)
            return self._interactive(jobs, request.params.context, requester)
        if project.key and (notice := project_notice(self.settings, xml, model)):
            # Stored under the sentence as its version: Label Studio shows nothing else of an answer.
            return {"results": [{"result": [], "score": None, "model_version": notice} for _ in request.tasks]}
        jobs = self.jobs(project, request.tasks, model, request_id, label_config=xml)
        return self._ordinary(jobs, project, request_id, requester)

    def jobs(
        self,
        project: Project,
        tasks: Sequence[TaskItem],
        model: ServedModel,
        request_id: str,
        *,
        label_config: str = "",
    ) -> list[PredictionJob]:
        """Build the jobs for tasks of a project; the label config is the project's unless another is given."""
        xml = label_config or project.label_config
        config = parse_label_config(xml)
        if reason := unusable_because(config, model):
            raise UnsupportedConfigError(reason)
        output, _ = output_settings(self.settings, project.extra_params)
        return [_job(task, project.key, xml, config.value_key, model.version, output, request_id) for task in tasks]

    def _prompted(
        self, project: Project, request: PredictRequest, version: str, request_id: str, xml: str, requester: Requester
    ) -> dict[str, Any]:
        """Answer with the promptable model: one object a task; nothing where clicks were taken back.

        Raises:
            UnsupportedConfigError: the label config has no control that an outline fits.
        """
        config = parse_label_config(xml)
        if config.reason:
            raise UnsupportedConfigError(config.reason)
        output, _ = output_settings(self.settings, project.extra_params)
        context = request.params.context or {}
        results: list[Any] = []
        for task in request.tasks:
            try:
                prompt, earlier_prompt = with_earlier(
                    read_prompt(context, config),
                    self.prompted.get(project.key, task.id),
                    region_ids(task.drafts) | region_ids(task.annotations),
                )
                if prompt is None and context.get("result") == []:
                    self.prompted.save(project.key, task.id, None)
                    results.append({"result": [], "score": None, "model_version": version})
                    continue
                prompt = require_place(prompt)
            except PromptError as error:
                raise TaskError(f"The prompt cannot be used: {error}.") from error
            job = _job(task, project.key, xml, config.value_key, version, output, request_id)
            results += self._interactive([replace(job, prompt=dict(prompt))], None, requester)["results"]
            if earlier_prompt:
                ids = [region["id"] for region in results[-1]["result"]]
                self.prompted.save(project.key, task.id, {**earlier_prompt, "answer_ids": ids})
        return {"results": results}

    def _interactive(
        self, jobs: Sequence[PredictionJob], context: dict[str, Any] | None, requester: Requester
    ) -> dict[str, Any]:
        deadline_s = self.settings.interactive_deadline_s
        outcomes = self.queue.ask(jobs, until=time.monotonic() + deadline_s, interactive=True, requester=requester)
        # The annotator has gone, or will be told to try again: what still waits is dropped.
        self.queue.leave(requester)
        results = []
        for job in jobs:
            outcome = outcomes.get(job.id)
            if outcome is None:
                raise DeadlineError(f"Not ready within {deadline_s:.0f} s.", "Try again in a moment.")
            if outcome.prediction is None:
                raise TaskError(outcome.error, outcome.hint)
            prediction = outcome.prediction
            results.append(prediction if context is None else chosen_regions(prediction, context))
        return {"results": results}

    def _ordinary(
        self, jobs: Sequence[PredictionJob], project: Project, request_id: str, requester: Requester
    ) -> dict[str, Any]:
        until = time.monotonic() + self.settings.predict_deadline_s
        job_ids = list(dict.fromkeys(job.id for job in jobs))
        claim = DeliveryClaim()
        if self._is_label_studio(project, jobs):
            lifetime_s = self.settings.predict_deadline_s * 1.5 + CLAIM_GRACE_S
            claim = self.deliveries.claim(request_id, job_ids, lifetime_s=lifetime_s)
        try:
            outcomes = self._wait(jobs, until, requester)
        except BaseException:
            # If this fails, too, the claims expire by themselves; no deferred task is lost.
            with contextlib.suppress(RedisError):
                self.deliveries.abandon(claim)
            raise
        if len(outcomes) < len(job_ids):
            answer = self._defer(jobs, outcomes, project, claim)
            if requester.is_gone():
                # Only after deferring: tasks that will be pushed must not be dropped.
                self.queue.leave(requester)
            return answer
        predicted_ids = [job_id for job_id in job_ids if outcomes[job_id].prediction is not None]
        if not self.deliveries.release_if_all_held(claim, predicted_ids, keep_s=self.settings.result_ttl_s):
            return self._leave_to_others(jobs, outcomes, project, claim, until)
        if len(predicted_ids) < len(job_ids):
            self.deliveries.abandon(claim)
        return _results(jobs, outcomes)

    def _wait(self, jobs: Sequence[PredictionJob], until: float, requester: Requester) -> dict[str, JobOutcome]:
        has_place = self._waiting.acquire(blocking=False)
        if not has_place:
            log.warning("all %d waiting places are taken; a request is deferred", self._places)
            until = time.monotonic()
        outcomes: dict[str, JobOutcome] = {}
        try:
            outcomes = self.queue.ask(jobs, until=until, requester=requester)
            return outcomes
        finally:
            if has_place:
                self._waiting.release()
            if any(job.id not in outcomes for job in jobs):
                # Long enough to defer what is not ready; a repeated request meanwhile finds its tasks in the queue.
                self.queue.stay(requester, self.settings.abandoned_s)

    def _defer(
        self, jobs: Sequence[PredictionJob], outcomes: dict[str, JobOutcome], project: Project, claim: DeliveryClaim
    ) -> dict[str, Any]:
        facts = {
            job.id: {"project": project.key, "task": job.task["id"]}
            for job in jobs
            if job.id not in outcomes or outcomes[job.id].prediction is not None
        }
        if not claim.job_ids:
            # Nothing can be pushed. Other clients ask again, Label Studio does not.
            if re.fullmatch(r"[0-9]{1,18}\.[0-9]+", project.key) and not self._has_address(project):
                raise QueueUnavailableError(
                    f"The address of Label Studio's project {project.id} is not known, so late predictions of it "
                    "cannot be pushed.",
                    "Open Settings > Model in Label Studio and save, or set LABEL_STUDIO_URL for good.",
                )
            return DEFERRED
        # Tasks that the queue server lost while we waited must be queued again, or they would never be computed.
        forgotten_ids = set(self.queue.records.look(list(facts))[1])
        self.queue.submit([job for job in jobs if job.id in forgotten_ids])
        if self.deliveries.defer(claim, facts):
            raise QueueUnavailableError(
                "The queue server forgot tasks while they were handed over.", "Retrieve the predictions again."
            )
        self.deliveries.abandon(claim)
        self.promises.keep(project, [job for job in jobs if job.id in facts])
        log.info("project %s: %d tasks deferred", project.id or "?", len(facts))
        return DEFERRED

    def _is_label_studio(self, project: Project, jobs: Sequence[PredictionJob]) -> bool:
        """Whether a request comes from Label Studio: without an address and numeric ids nothing can be pushed there."""
        ids = [project.id, *(str(job.task["id"]) for job in jobs)]
        return self._has_address(project) and all(re.fullmatch(r"[0-9]{1,18}", number) for number in ids)

    def _has_address(self, project: Project) -> bool:
        return bool(project.hostname or self.settings.label_studio_url)

    def _leave_to_others(
        self,
        jobs: Sequence[PredictionJob],
        outcomes: dict[str, JobOutcome],
        project: Project,
        claim: DeliveryClaim,
        until: float,
    ) -> dict[str, Any]:
        """Defer: another request delivers some of these tasks. For a single task, wait until it has."""
        answer = self._defer(jobs, outcomes, project, claim)
        if len(claim.job_ids) == 1:
            while self.deliveries.is_claimed(claim.job_ids[0]) and time.monotonic() < until:
                time.sleep(0.05)
            time.sleep(STORE_S)
        return answer


def unusable_because(config: LabelConfig, model: ServedModel) -> str:
    """Why nothing can be predicted for this config with this model; "" when something can."""
    if config.reason:
        return config.reason
    return config.match(model.labels).message or ""


def _job(
    task: TaskItem, project: str, xml: str, value_key: str, version: str, output: dict[str, Any], request_id: str
) -> PredictionJob:
    value = task.data.get(value_key, task.data.get(UNDEFINED_KEY))
    # Only the image is queued; when its key is missing, all data is, so that the worker's error can name the keys.
    data = task.data if value is None else {value_key: value}
    if value is None:
        try:
            value = image_value({"data": task.data}, value_key)  # a path or a template: needs the other keys
        except ImageError:
            value = None
    image = str(value)
    if len(image) > LONGEST_ADDRESS:  # the image itself, which the job already has in its task
        image = f"sha256:{hashlib.sha256(image.encode(errors='surrogatepass')).hexdigest()}"
    return PredictionJob(
        project=project,
        task={"id": task.id, "data": data},
        image=image,
        label_config=xml,
        model_version=version,
        output=output,
        request_id=request_id,
    )


def _results(jobs: Sequence[PredictionJob], outcomes: dict[str, JobOutcome]) -> dict[str, Any]:
    """Results in task order; `[]` and an entry in `errors` for a failed task."""
    results: list[Any] = []
    errors = []
    for job in jobs:
        outcome = outcomes[job.id]
        results.append(outcome.prediction if outcome.prediction is not None else [])
        if outcome.prediction is None:
            errors.append({"task": job.task["id"], "error": outcome.error, "hint": outcome.hint})
    return {"results": results, **({"errors": errors} if errors else {})}
