"""Names of everything that lies in Redis, spelled nowhere else; scripts get them from `NAMES`.

Those that end in a colon are prefixes, followed by an id or a name.
"""

from __future__ import annotations

import json

PREFIX = "transfiner:"

# Prediction tasks.
TASK = f"{PREFIX}task:"
TASKS = f"{PREFIX}tasks"
STATS = f"{PREFIX}stats"
# Lists of waiting ids, in the order in which they are served; Kubernetes' autoscaling asks for their lengths.
INTERACTIVE_LANE = "rq:queue:transfiner-interactive"
PREDICT_LANE = "rq:queue:transfiner-predict"
LANES = (INTERACTIVE_LANE, PREDICT_LANE)
# Label configs by digest, apart from the tasks that name them.
CONFIG = f"{PREFIX}config:"
CONFIGS = f"{PREFIX}configs"
# Job ids are published here when tasks end, so that waiting requests wake at once.
FINISHED_CHANNEL = f"{PREFIX}finished"
# Published when tasks were queued, so that idle workers wake at once.
QUEUED_CHANNEL = f"{PREFIX}queued"
# Waiting requests: those of each task, and the lease of each request.
REQUESTERS = f"{PREFIX}askers:"
REQUESTER = f"{PREFIX}asker:"

# The last prompt of a task.
PROMPTED = f"{PREFIX}prompted:"

# Delivery to Label Studio.
# Which request delivers a task.
CLAIM = f"{PREFIX}claim:"
DEFERRED = f"{PREFIX}deferred"
PUSHING = f"{PREFIX}pushing"
PUSHED = f"{PREFIX}pushed:"
PUSH_LOCK = f"{PREFIX}push:"

# Workers.
WORKERS = f"{PREFIX}workers"
# Heartbeats; each expires when its worker dies.
WORKER = f"{PREFIX}worker:"
# Exists while a worker lives that takes interactive tasks only; their names begin so, too.
INTERACTIVE_WORKERS = f"{PREFIX}interactive-workers"
INTERACTIVE_NAME = "interactive-"
# Tasks that a worker is running.
RUNNING = f"{PREFIX}running:"
# Tasks that were taken from a worker because it seemed dead.
TAKEN_FROM = f"{PREFIX}taken-from:"

# Projects and pages.
PROJECTS = f"{PREFIX}projects"
PROJECT = f"{PREFIX}project:"
FORM_SECRET = f"{PREFIX}form-secret"

# Learning.
LEARNING = f"{PREFIX}learning"
# List of trainings that wait, "<project>:<run>".
TRAININGS = f"{PREFIX}trainings"
TRAINERS = f"{PREFIX}trainers"
WATCH_LOCK = f"{PREFIX}learning:watch"

# Names for scripts, which build keys from their data; decoded in Lua from ARGV[1].
NAMES = json.dumps(
    {
        "task": TASK,
        "tasks": TASKS,
        "stats": STATS,
        "finished_channel": FINISHED_CHANNEL,
        "queued_channel": QUEUED_CHANNEL,
        "requesters": REQUESTERS,
        "requester": REQUESTER,
        "claim": CLAIM,
        "deferred": DEFERRED,
        "pushing": PUSHING,
        "pushed": PUSHED,
        "worker": WORKER,
        "interactive_name": INTERACTIVE_NAME,
    }
)


def prompted_key(project: str, task: object) -> str:
    """Key of the last prompt of a task."""
    return f"{PROMPTED}{project}:{task}"


def learning_key(project: str) -> str:
    """Key of the training that waits or runs for a project."""
    return f"{LEARNING}:{project}"


def learning_cancel_key(project: str) -> str:
    """Key of the run of a project that is being cancelled."""
    return f"{LEARNING}:{project}:cancel"


def learning_lock_key(project: str) -> str:
    """Key of the lock that a project's trainer holds."""
    return f"{LEARNING}:{project}:lock"


def trigger_state_key(project: str) -> str:
    """Key of what the watcher last found in a project."""
    return f"{LEARNING}:{project}:looked"


def repredict_key(project: str) -> str:
    """Key of the progress of predicting a project's tasks anew after a promotion."""
    return f"{LEARNING}:{project}:repredict"
