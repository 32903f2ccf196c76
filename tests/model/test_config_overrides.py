"""Keys and values that people set: text, numbers, and what is wrong with them."""

from __future__ import annotations

import pytest

from model.config import get_config, override


def test_text_numbers_and_lists_become_what_the_key_holds() -> None:
    cfg = get_config()
    override(
        cfg,
        [
            "MODEL.TRANSFINER.TEST_MIN_BOX_PX",
            "0",
            "MODEL.TRANSFINER.NESTED",
            "True",
            "MODEL.TRANSFINER.LEVEL_SIZES",
            (28, 56),
            "MODEL.DEVICE",
            "cpu",
            "SOLVER.BASE_LR",
            1,
        ],
    )
    node = cfg.MODEL.TRANSFINER
    assert (node.TEST_MIN_BOX_PX, node.NESTED, list(node.LEVEL_SIZES)) == (0.0, True, [28, 56])
    assert isinstance(node.TEST_MIN_BOX_PX, float)
    assert (cfg.MODEL.DEVICE, cfg.SOLVER.BASE_LR) == ("cpu", 1.0)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (
            ["MODEL.TRANSFINER.NODE_BUDGET", 3],
            r"no configuration key .*did you mean MODEL\.TRANSFINER\.TEST_NODE_BUDGET",
        ),
        (["nonsense", 3], r"no configuration key 'nonsense'$"),
        (["MODEL.TRANSFINER.NESTED", "perhaps"], "NESTED cannot be 'perhaps'; it is a bool like False"),
        (["MODEL.TRANSFINER"], "keys and values alternate"),
    ],
)
def test_what_is_wrong_is_said(pairs: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(get_config(), pairs)
