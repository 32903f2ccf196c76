"""Sentences that Label Studio shows in place of a model version: why nothing was outlined, and what to do.

Label Studio 1.23 shows no text of a backend's answers. What its pages show is the backend's title, and the version of
each prediction as the name of its tab. So a project for which nothing can be predicted gets a sentence in both places,
and empty predictions under it. They are no predictions: code that reads tasks leaves them out.
"""

from __future__ import annotations

from collections.abc import Sequence

PREFIX = "Nothing outlined: "
# Longer ones are cut by Label Studio's pages.
LONGEST = 240
MOST_NAMES = 4


def is_notice(version: object) -> bool:
    """Whether a model version or a title is such a sentence."""
    return isinstance(version, str) and version.startswith(PREFIX)


def notice(reason: str, status_url: str) -> str:
    """The sentence for a reason, with the address that says more."""
    words = " ".join(reason.split()).rstrip(".")
    room = LONGEST - len(PREFIX) - len(status_url) - 2
    short_reason = words if len(words) <= room else words[: room - 1].rstrip() + "…"
    return f"{PREFIX}{short_reason}. {status_url}"


def unknown_labels(version: str, labels: Sequence[str], *, has_smart_tools: bool) -> str:
    """The reason where a model knows none of a project's labels, with what to do."""
    names = ", ".join(labels[:MOST_NAMES])
    if len(labels) > MOST_NAMES:
        names += f" and {len(labels) - MOST_NAMES} more"
    tools = "Smart tools work; annotate" if has_smart_tools else "Annotate"
    return f"{version} knows none of: {names}. {tools} about 10, then Start Training"
