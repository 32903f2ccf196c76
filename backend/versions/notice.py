"""What a project is told in Label Studio when nothing can be predicted for it."""

from __future__ import annotations

import re

from backend.settings import Settings
from backend.versions.resolve import ServedModel, prompt_version
from integration.label_studio.label_config import parse_label_config
from integration.label_studio.notice import notice, unknown_labels

SMART = re.compile(r"""\ssmart\s*=\s*["']true["']""", re.IGNORECASE)


def project_notice(settings: Settings, label_config: str, model: ServedModel) -> str:
    """Why nothing is outlined in a project with this label config (XML), and what to do; "" when something is."""
    config = parse_label_config(label_config)
    if config.reason:
        return notice(config.reason, settings.status_url)
    matched = config.match(model.labels)
    if not matched.message:
        return ""
    has_tools = has_smart_tools(label_config) and bool(prompt_version(settings))
    reason = unknown_labels(model.version, config.labels, has_smart_tools=has_tools)
    return notice(reason, settings.status_url)


def has_smart_tools(label_config: str) -> bool:
    """Whether a label config has a control that sends boxes, clicks or strokes to the backend."""
    return bool(SMART.search(label_config))
