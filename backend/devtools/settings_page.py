"""Write docs/settings.md from backend/settings.py: `python -m backend.devtools.settings_page > docs/settings.md`."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from backend.settings import PREFIX, SHIPPED_MODEL, Settings

HEAD = """\
# Settings

Every setting is an environment variable. Written from the comments of `backend/settings.py` by
`python -m backend.devtools.settings_page > docs/settings.md`; a test says when this page is out of date.
"""
TABLE_HEAD = "| variable | default | what it does |\n|---|---|---|"
FIELD = re.compile(r"    (\w+): ")
STANDARD_NAMES = {"label_studio_url": "LABEL_STUDIO_URL", "label_studio_api_key": "LABEL_STUDIO_API_KEY"}


@dataclass(frozen=True)
class SettingRow:
    """A setting with the section and the comment that stand above it in the source."""

    section: str
    name: str
    comment: str

    @property
    def variable(self) -> str:
        """The environment variable that the setting is read from."""
        return STANDARD_NAMES.get(self.name, PREFIX + self.name.upper())


def setting_rows() -> list[SettingRow]:
    """All settings in the order of the source; fields in a row share the comment above them."""
    rows, section, comment, is_comment_open = [], "", "", False
    for line in inspect.getsource(Settings).splitlines():
        text = line.strip()
        if text.startswith("# --- "):
            section, comment, is_comment_open = text.removeprefix("# --- "), "", False
        elif text.startswith("#") and line.startswith("    #"):
            comment = f"{comment} {text[2:]}" if is_comment_open else text[2:]
            is_comment_open = True
        else:
            is_comment_open = False
            field = FIELD.match(line)
            if field and field[1] in Settings.model_fields:
                rows.append(SettingRow(section, field[1], comment))
    return rows


def settings_page() -> str:
    """The page as Markdown, one table a section."""
    lines, section = [HEAD], None
    for row in setting_rows():
        if row.section != section:
            section = row.section
            lines.append(f"\n## {section[0].upper()}{section[1:]}\n\n{TABLE_HEAD}")
        comment = row.comment.replace("|", "\\|")
        lines.append(f"| `{row.variable}` | {_default(row.name)} | {comment} |")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def _default(name: str) -> str:
    value = Settings.model_fields[name].get_default(call_default_factory=True)
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value == SHIPPED_MODEL:
        value = Path("model") / "weights" / value.name
    return f"`{value}`" if value not in ("", [], {}) else "empty"


if __name__ == "__main__":
    print(settings_page(), end="")
