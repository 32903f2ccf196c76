"""Everything an operator can turn, as `TRANSFINER_*` environment variables.

Units are in the names (`_s` seconds, `_px` pixels, `_mib` mebibytes). Limits have safe defaults; the facts behind the
time limits are Label Studio's own: it gives /health 1 s, /setup 3 s, webhook events 1 s and /predict 100 s.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

import model as model_package
from backend.errors import StartError

PREFIX = "TRANSFINER_"
WEIGHTS = Path(model_package.__file__).parent / "weights"
# Common objects on photographs, and prompts.
SHIPPED_MODEL = SHIPPED_PROMPT_MODEL = WEIGHTS / "photos"
# Objects on scenes that the project draws: for the demo's second project, benchmarks and tests.
SCENES_MODEL = WEIGHTS / "scenes-small"
# Read by the tests and by other commands, never by the service itself.
FOREIGN_VARIABLES = frozenset(
    PREFIX + name for name in ("SHARED_DATA", "FUZZ_EXAMPLES", "FIRST_HOUR", "DETECTRON2", "SLOW_TESTS")
)


class Settings(BaseSettings):
    """Operation of the service. Every field `x` is read from `TRANSFINER_X`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", populate_by_name=True, validate_default=True, protected_namespaces=()
    )

    # --- where the service listens
    # Address the API binds; 0.0.0.0 to be reachable from other machines or containers.
    host: str = "127.0.0.1"
    # TCP port of the API; 0 lets the system choose one.
    port: int = Field(default=9090, ge=0, le=65535)
    # Requests answered at the same time by one API process; a waiting /predict holds one of them.
    api_threads: int = Field(default=48, ge=4, le=1024)
    # Largest request body, in MiB; 450 tasks of Label Studio are about 1 MiB. Four times as much is read at once.
    max_request_mib: float = Field(default=32.0, gt=0)
    # Memory for what all requests at hand have asked, in MiB; those that find none within 2 s are answered 503.
    requests_memory_mib: float = Field(default=256.0, gt=0)
    # Most tasks in one /predict; more are refused with a hint.
    max_tasks_per_request: int = Field(default=10_000, ge=1)

    # --- the queue
    # Redis-protocol server, e.g. redis://host:6379/0. Empty: `serve` starts an embedded one.
    redis_url: str = ""
    # Longest wait of the API for one answer of the queue server, in s; below the 3 s that Label Studio gives /setup.
    redis_timeout_s: float = Field(default=2.0, gt=0)
    # The same inside a webhook, which Label Studio gives 1 s in all.
    redis_webhook_timeout_s: float = Field(default=0.5, gt=0)
    # A starting worker, or `serve` with a queue server elsewhere, ends when it does not answer within this time, in s.
    redis_start_s: float = Field(default=30.0, ge=0)
    # Workers that `serve` starts; one a GPU, or one on a CPU.
    workers: int = Field(default=1, ge=1, le=64)
    # Most tasks that one worker runs as one batch.
    max_batch: int = Field(default=4, ge=1, le=256)
    # How long an idle worker waits for more tasks than one, in ms. Tasks that come while a batch runs are batched
    # anyway; waiting makes every lone task later.
    max_wait_ms: float = Field(default=0.0, ge=0)
    # One batch may run this long, in s, before its tasks fail.
    batch_timeout_s: int = Field(default=300, ge=1)
    # A finished prediction is remembered this long, in s: whoever asks again gets it without computing.
    result_ttl_s: int = Field(default=3600, ge=10)
    # A waiting task that nobody has waited for during this time, in s, and that cannot be pushed, is dropped.
    abandoned_s: float = Field(default=120.0, ge=1)
    # A worker that has not been heard of for this long, in s, is dead and its tasks go to another one.
    worker_lost_s: float = Field(default=10.0, ge=1)
    # A task is given up (state `parked`) after killing its worker this often.
    max_attempts: int = Field(default=2, ge=1)
    # After SIGTERM a worker may finish its batch this long, in s, before it is killed.
    drain_s: float = Field(default=60.0, ge=0)

    # --- answering /predict
    # Answer within this many s; must be under Label Studio's 100 s (its ML_TIMEOUT_PREDICT).
    predict_deadline_s: float = Field(default=80.0, gt=0)
    # The same for interactive requests: somebody is looking at the screen.
    interactive_deadline_s: float = Field(default=20.0, gt=0)
    # Predictions in one bulk push to Label Studio, for those that missed the deadline.
    push_chunk: int = Field(default=100, ge=1, le=2000)
    # A failed push is tried again after this many s, then after twice as many, and so on.
    push_retry_s: float = Field(default=1.0, gt=0)
    # Longest wait between two tries of a push, in s.
    push_retry_max_s: float = Field(default=60.0, gt=0)

    # Folder in which an API notes what it answered "deferred", in a file named by its port, should it and the queue
    # server be lost together. It holds tokens that Label Studio sent with /setup.
    promises_folder: Path = Path("var/promises")

    # --- the model
    # Checkpoint directory: model.safetensors, config.yaml, metadata.json.
    model: Path = SHIPPED_MODEL
    # The promptable model that answers boxes and clicks, whatever the project's own model knows; a folder that does not
    # exist: smart tools choose among the outlines that are there.
    prompt_model: Path = SHIPPED_PROMPT_MODEL
    # Models of single projects, by Label Studio's project id: "12=/models/gears,13=/models/leaves".
    project_models: str = ""
    # Weights of all models that one worker keeps loaded, in MiB; beyond it the least used are dropped.
    warm_models_mib: float = Field(default=2048.0, gt=0)
    # auto, cpu, cuda, cuda:1 ...
    device: str = "auto"
    # Arithmetic on a CPU: fp32, bf16 (for processors with AMX or AVX512-BF16), or auto: bf16 where the processor is
    # fast at it and the model's card says what it costs (`transfiner benchmark precision`). Predictions name theirs.
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    # Nodes of an image that are refined, the worthiest first; 0: all; -1: what the model's metadata asks for
    # (`served.node_budget`), else its config.yaml.
    node_budget: int = Field(default=-1, ge=-1)
    # Number of this worker on its host: with device auto and several GPUs, worker n takes GPU n.
    worker_number: int = Field(default=0, ge=0)
    # CPU threads of one worker's torch; 0 leaves torch's own choice.
    torch_threads: int = Field(default=0, ge=0)

    # --- large images
    # Images whose longer edge is longer than this, in px, are predicted in tiles and sewn together; 0: never.
    tile_above_px: int = Field(default=4096, ge=0)
    # Edge of a tile, in px.
    tile_px: int = Field(default=1024, ge=64)
    # How far neighbouring tiles overlap, in px; objects up to this size are never cut.
    tile_overlap_px: int = Field(default=256, ge=8)

    # --- what a prediction contains (a tag's own attribute, e.g. model_score_threshold, wins)
    # Detections below this confidence are dropped, 0..1.
    score_threshold: float = Field(default=0.5, ge=0, le=1)
    # Detections below this confidence are not even outlined, which saves time; no tag can go lower, 0..1.
    score_floor: float = Field(default=0.25, ge=0, le=1)
    # A polygon stays within this distance of the mask's outline, in pixels of the image.
    tolerance_px: float = Field(default=1.0, ge=0)
    # Most vertices of one polygon, at least 3; 0 for no limit.
    max_vertices: int = Field(default=0, ge=0)

    # --- Label Studio
    # Address of Label Studio. Empty: the one that it sent with /setup.
    label_studio_url: str = Field(
        default="", validation_alias=AliasChoices("TRANSFINER_LABEL_STUDIO_URL", "LABEL_STUDIO_URL", "label_studio_url")
    )
    # Its API key, a personal access token or a legacy token; only ever sent to the address above, never to one that a
    # request names. Empty: the one that it sent with /setup.
    label_studio_api_key: SecretStr = Field(
        default=SecretStr(""),
        validation_alias=AliasChoices(
            "TRANSFINER_LABEL_STUDIO_API_KEY", "LABEL_STUDIO_API_KEY", "label_studio_api_key"
        ),
    )
    # Without an address of our own: hosts that a /setup without password may name ("host", "host:port", "*"), comma
    # separated. A Label Studio on this machine that calls us from this machine is always believed.
    label_studio_hosts: str = ""
    # Longest wait for Label Studio to store one push, in s.
    label_studio_timeout_s: float = Field(default=30.0, gt=0)

    # --- images
    # Largest download of an image, in MiB.
    max_image_mib: float = Field(default=64.0, gt=0)
    # Largest picture, in megapixels.
    max_image_megapixels: float = Field(default=80.0, gt=0)
    # Longest download of an image, in s.
    image_timeout_s: float = Field(default=30.0, gt=0)
    # Most redirects of an image's address.
    max_redirects: int = Field(default=5, ge=0)
    # Memory for decoding pictures, all of one worker at once, in MiB. They wait for one another; a picture that takes
    # more than all of it fails its task: 80 megapixels take 1.0 GiB as JPEG, 0.6 GiB as PNG, 1.8 GiB as JPEG 2000.
    max_decoding_mib: float = Field(default=1536.0, gt=0)
    # Hosts that may resolve to loopback or private addresses, comma separated ("host", "host:port" or "*").
    # Label Studio's own host is always allowed.
    private_image_hosts: str = ""
    # Folder of the workers' image cache; empty: none.
    image_cache: str = ""
    # Most that the image cache holds, in MiB.
    image_cache_mib: float = Field(default=2048.0, gt=0)

    # --- learning from corrections
    # Folder or bucket (s3://bucket/path) of model versions, snapshots and rounds; empty: no learning.
    registry: str = "var/registry"
    # Folder in which versions of the registry are kept on this machine.
    registry_cache: Path = Path("var/cache/registry")
    # Folder in which running trainings keep what they need to go on after a crash.
    learning_folder: Path = Path("var/learning")
    # Train by itself once this many annotations are newer than the newest snapshot; 0: only when asked.
    train_after: int = Field(default=0, ge=0)
    # Train by itself when the last round is this many hours ago and there is a newer annotation; 0: never.
    train_every_h: float = Field(default=0.0, ge=0)
    # Label Studio is asked for new annotations this often, in s; webhook events make it sooner.
    learning_check_s: float = Field(default=60.0, gt=0)
    # Whoever trains renews his lock; after this many s without he is dead and the training goes on elsewhere.
    learning_lost_s: float = Field(default=30.0, ge=1)
    # Share of the images kept for judging, never trained on, 0..1; by content, so it is the same share for ever.
    holdout_share: float = Field(default=0.2, gt=0, lt=1)
    # Which of several annotations of an image counts: latest, or agreement: what the annotators agree on.
    annotators: Literal["latest", "agreement"] = "latest"
    # Earlier snapshots mixed into a training, and asked in the check for forgetting.
    replay_snapshots: int = Field(default=4, ge=0)
    # Sets mixed into every training, as `transfiner train` names them, e.g. ["scenes:train"].
    finetune_base_sets: list[str] = []
    # A snapshot of at most this many images teaches its labels to the detector of TRANSFINER_PROMPT_MODEL, in minutes,
    # where the serving model knows none of them; where one of that kind serves, of up to 1000. 0: always finetune.
    few_shot_images: int = Field(default=300, ge=0)
    # Fields of training.finetune.plan.FinetuneSettings as a JSON object, e.g. {"iterations": 400}.
    finetune_options: dict[str, Any] = {}
    # Fields of training.gate.GateRules as a JSON object, e.g. {"confidence": 0.9}.
    gate_rules: dict[str, Any] = {}
    # Processes of one training; more than 1 are started with torchrun.
    train_processes: int = Field(default=1, ge=1)
    # Have unlabelled tasks predicted anew after a promotion.
    repredict: bool = True
    # Whether `serve` also starts a worker of the queue `train`; it is small while it waits.
    train_worker: bool = True

    # --- access
    # User of the password that everything but /health and /ready asks for; set both on the ML backend in Label Studio.
    # Empty, and no token for programs: no check.
    basic_auth_user: str = ""
    # The password of that user; both are set or neither.
    basic_auth_password: SecretStr = SecretStr("")
    # For programs: accepted as `Authorization: Bearer ...` beside the password. Label Studio cannot send it: alone it
    # locks Label Studio out.
    api_token: SecretStr = SecretStr("")
    # Accepted on /webhook as header X-Transfiner-Secret in place of the password, which Label Studio's events never
    # carry; without a password it is demanded.
    webhook_secret: SecretStr = SecretStr("")

    # Names under which the service is reached while no password is set, comma separated ("*": any). Addresses, names
    # without a dot and names that no public server has (.local, .internal, .svc ...) need not be listed.
    allowed_hosts: str = ""

    # --- logs
    # Least that is logged: DEBUG, INFO, WARNING or ERROR.
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    # text for people, json for log collectors.
    log_format: Literal["text", "json"] = "text"

    @field_validator("label_studio_url")
    @classmethod
    def _without_slash(cls, url: str) -> str:
        if url and (not url.startswith(("http://", "https://")) or re.search(r"[@\\\s%]", url)):
            raise ValueError("expected http://host:port or https://host, e.g. http://127.0.0.1:8080")
        return url.rstrip("/")

    @field_validator("max_vertices")
    @classmethod
    def _polygon(cls, count: int) -> int:
        if count in (1, 2):
            raise ValueError("expected 0 (no limit) or at least 3, the vertices of a triangle")
        return count

    @field_validator("project_models")
    @classmethod
    def _pairs(cls, text: str) -> str:
        for pair in filter(None, (part.strip() for part in text.split(","))):
            project, _, directory = pair.partition("=")
            if not (project.isdigit() and directory):
                raise ValueError(f"{pair!r} is not of the form PROJECT_ID=DIRECTORY, e.g. 12=/models/gears")
        return text

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, url: str) -> str:
        if url and not url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError(
                "expected an address that begins with redis://, rediss:// or unix://, e.g. redis://127.0.0.1:6379/0"
            )
        return url

    @model_validator(mode="after")
    def _fit_together(self) -> Settings:
        if self.tile_overlap_px >= self.tile_px:
            raise ValueError(
                f"TRANSFINER_TILE_OVERLAP_PX is {self.tile_overlap_px} and TRANSFINER_TILE_PX {self.tile_px}; "
                "expected a smaller overlap than a tile"
            )
        if self.label_studio_api_key.get_secret_value() and not self.label_studio_url:
            raise ValueError("LABEL_STUDIO_API_KEY is set but LABEL_STUDIO_URL is not; the key is sent only there")
        if bool(self.basic_auth_user) != bool(self.basic_auth_password.get_secret_value()):
            raise ValueError("TRANSFINER_BASIC_AUTH_USER and TRANSFINER_BASIC_AUTH_PASSWORD must be set together")
        return self

    @property
    def status_url(self) -> str:
        """Address of the status page as a browser on this machine reaches it."""
        return status_url(self.host, self.port)

    def models_of_projects(self) -> dict[str, Path]:
        """Checkpoint directories of single projects, by project id."""
        pairs = (part.strip().partition("=") for part in self.project_models.split(",") if part.strip())
        return {project: Path(directory) for project, _, directory in pairs}


def status_url(host: str, port: int) -> str:
    """Address of the status page of an API that listens on `host`, as a browser on this machine reaches it."""
    return f"{local_url('localhost' if host in ('0.0.0.0', '127.0.0.1') else host, port)}/status"


def local_url(host: str, port: int) -> str:
    """Address at which a program on this machine reaches an API that listens on `host`."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment, with what a command line gave on top (None: not given).

    Raises:
        StartError: a value is not allowed; names the variable, the value and what was expected.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        problems = "; ".join(map(_described, error.errors()))
        raise StartError(f"Wrong settings: {problems}.", "Correct or unset the variable.") from error
    except SettingsError as error:  # its message names the field
        field = next((name for name in Settings.model_fields if f'"{name}"' in str(error)), "")
        variable = PREFIX + field.upper()
        raise StartError(
            f"{variable} is {os.environ.get(variable, '')!r}, expected JSON.",
            f"Examples are in docs/settings.md, for instance {variable}='{_JSON_EXAMPLES.get(field, '{}')}'.",
        ) from error


_JSON_EXAMPLES = {"finetune_base_sets": '["scenes:train"]', "gate_rules": '{"confidence": 0.9}'}


def _described(problem: ErrorDetails) -> str:
    """A problem with a setting: the variable, its value unless it is secret, and what was expected."""
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:  # of several variables, which the message names
        return message
    field = str(problem["loc"][0])
    variable = field if field.isupper() else PREFIX + field.upper()
    if isinstance(getattr(Settings.model_fields.get(field), "default", None), SecretStr):
        return f"{variable}: {message}"
    value = re.sub(r"^.*@", "...@", str(problem["input"]))  # an address may hold a password
    return f"{variable} is {value!r}: {message}"


def known_variables() -> set[str]:
    """Names of all environment variables that settings are read from."""
    return {PREFIX + name.upper() for name in Settings.model_fields}


def unknown_variables(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """`TRANSFINER_*` variables that nobody reads, each with the closest known name ("" when none is close).

    A misspelt limit would otherwise be silently without effect.
    """
    environment = os.environ if environment is None else environment
    known_names = known_variables()
    unknown_names = [
        name for name in environment if name.startswith(PREFIX) and name not in known_names | FOREIGN_VARIABLES
    ]
    return {name: next(iter(difflib.get_close_matches(name, known_names, 1)), "") for name in sorted(unknown_names)}
