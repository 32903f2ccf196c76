"""Annotations that cannot be right: reported with file and id, counted, and skipped or fatal."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

Policy = Literal["skip", "fatal"]
logger = logging.getLogger(__name__)
_TOLD = 5  # problems of one kind that are logged one by one; the rest is only counted


class BadAnnotationError(ValueError):
    """An annotation that cannot be right, in a set whose policy is ``fatal``."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: the file that says so.
        record: which of its records, ``annotation 17`` for instance.
        kind: ``degenerate polygon``, ``box outside``, ``unknown category``, ``missing file``...
        detail: the value, and what was done about it.
    """

    file: str
    record: str
    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.file}: {self.record}: {self.kind}: {self.detail}"


@dataclass
class Problems:
    """What was found wrong with a set so far."""

    policy: Policy = "skip"
    found: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise ValueError(f"what to do with bad annotations is {self.policy!r}, expected one of {get_args(Policy)}")

    def note(self, file: object, record: str, kind: str, detail: str) -> None:
        """Report a problem. Raises BadAnnotationError where the policy is ``fatal``."""
        problem = Problem(str(file), record, kind, detail)
        if self.policy == "fatal":
            raise BadAnnotationError(str(problem))
        if problem in self.found:  # the same image read again
            return
        self.found.append(problem)
        told = self.counts()[kind]
        if told <= _TOLD:
            logger.warning("%s%s", problem, "; more of this kind are only counted" if told == _TOLD else "")

    def truth_is_there(self, truth: Path, image: Path, missing: Policy) -> bool:
        """Whether a picture's ground truth is a file; if not, that is noted, or fatal where ``missing`` says so.

        Raises:
            FileNotFoundError: it is not, and ``missing`` is ``fatal``.
        """
        if truth.is_file():
            return True
        if missing == "fatal":
            raise FileNotFoundError(f"image {image} has no ground truth {truth}")
        self.note(truth, f"image {image.name}", "missing file", "no ground truth; skipped")
        return False

    def counts(self) -> Counter[str]:
        """How many of each kind."""
        return Counter(problem.kind for problem in self.found)
