"""Keys and values that people set beside a configuration file."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Sequence

from detectron2.config import CfgNode


def override(cfg: CfgNode, pairs: Sequence[object]) -> None:
    """Set keys of a configuration in place; ``pairs`` are keys and values, alternating, values also as text.

    A whole number will do where the key is a fraction.

    Raises:
        ValueError: an unknown key, named with those that are like it; or a value of another type.
    """
    if len(pairs) % 2:
        raise ValueError(f"keys and values alternate, but there are {len(pairs)}: {list(pairs)}")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        known = _leaves(cfg)
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=3)
            raise ValueError(f"no configuration key {key!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
        meant = _literal(value)
        if isinstance(known[str(key)], float) and type(meant) is int:
            meant = float(meant)
        try:
            cfg.merge_from_list([key, meant])
        except ValueError as error:
            expected = f"{type(known[str(key)]).__name__} like {known[str(key)]!r}"
            raise ValueError(f"{key} cannot be {value!r}; it is a {expected}") from error


def _leaves(node: CfgNode, path: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in node.items():
        found |= _leaves(value, f"{path}{key}.") if isinstance(value, CfgNode) else {f"{path}{key}": value}
    return found


def _literal(value: object) -> object:
    """What a text means as Python writes it; the text itself where it means nothing."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        return value
