"""Every table's description, its plan, and two tables end to end at the smallest scale."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage

from model.mask_head.incoherence import build_detection
from model.network import build_network
from training.benchmark.cost.measures import training_record
from training.benchmark.measurement import renumbered
from training.benchmark.runner import (
    Scale,
    missing_files,
    overrides_when_measured,
    plan_table,
    plan_text,
    rescale,
    run_table,
    training_config,
    training_digest,
)
from training.benchmark.tables import TABLES, Row, Table, build_table_report, table_report_markdown, write_table_report

pytestmark = pytest.mark.slow

ROWS = [(table, row) for table in TABLES.values() for row in table.rows]
TINY = Scale(miniature=True, iterations=1, train="scenes:train:4", test="scenes:val:1")


def row_of(number: int, key: str) -> tuple[Table, Row]:
    table = TABLES[number]
    return table, next(row for row in table.rows if row.key == key)


def test_all_twelve_tables_are_there_with_the_papers_figures() -> None:
    assert sorted(TABLES) == list(range(1, 13))
    assert row_of(5, "depth-4")[1].paper == {"AP": 37.1, "AP*": 40.7, "APl": 53.1, "APm": 39.3, "APs": 17.4, "FPS": 5.2}
    assert row_of(7, "nla-224")[1].paper["MB"] == 18091
    assert row_of(12, "transfiner")[1].paper["FPS"] == 6.1
    assert [row.key for row in TABLES[9].rows if row.quoted] == [
        "bmask-r50",
        "bpr-r50",
        "ms-rcnn-r101-dcn",
        "htc-r101",
        "refinemask-r101",
        "bcnet-r101",
        "istr-r50",
        "queryinst-r50",
        "solq-r50",
    ]


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: f"table {table.number}")
def test_every_row_has_a_configuration_of_known_keys_and_a_name_of_its_own(table: Table) -> None:
    assert len({row.key for row in table.rows}) == len(table.rows)
    assert all(row.paper for row in table.rows)
    for row in table.rows:
        if not row.quoted:
            cfg = training_config(table, row, Scale(data="/nowhere"), seed=1)
            cfg.merge_from_list(overrides_when_measured(row, False))
            assert cfg.DATASETS.TRAIN[0].split(":")[1].startswith("/nowhere")
            assert all(step < cfg.SOLVER.MAX_ITER for step in cfg.SOLVER.STEPS)


def test_rows_of_several_tables_that_are_one_training_share_it() -> None:
    names = {
        training_digest(training_config(*row_of(number, key), Scale(), seed=0))
        for number, key in ((2, "incoherent"), (3, "guided"), (4, "all"), (5, "depth-3"), (8, "both"), (8, "mjr"))
    }
    assert len(names) == 1
    assert training_digest(training_config(*row_of(3, "unguided"), Scale(), seed=0)) not in names
    assert training_digest(training_config(*row_of(3, "guided"), Scale(), seed=1)) not in names


@pytest.mark.parametrize(("key", "channels"), [("unguided", 32), ("guided", 33)])
def test_guidance_is_one_more_channel_of_the_finer_levels(key: str, channels: int) -> None:
    cfg = training_config(*row_of(3, key), Scale(), seed=0)
    detection = build_detection(cfg.MODEL.TRANSFINER, 32, 32, 4)
    assert detection is not None
    assert detection.layers["incoherence_level1"].in_channels == channels


def test_a_shorter_run_keeps_the_shape_of_the_schedule() -> None:
    cfg = training_config(*row_of(5, "depth-3"), Scale(), seed=0)
    rescale(cfg, 1759)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS) == (1759, (1173, 1612), 439)


def test_a_plan_says_what_is_missing_and_what_is_trained(tmp_path: Path) -> None:
    plan = plan_table(TABLES[10], Scale(data=str(tmp_path)))
    assert str(tmp_path / "gtFine" / "train") in plan["data"]["missing"]
    assert plan["rows"][-1]["iterations"] == 24_000
    text = plan_text(plan)
    assert "quoted from the paper" in text
    assert missing_files("scenes:train") == []


@pytest.mark.parametrize(("number", "key"), [(3, "unguided"), (6, "pointrend"), (6, "cnn-full-56"), (11, "cascade")])
def test_compared_methods_train_and_predict(number: int, key: str) -> None:
    cfg = training_config(*row_of(number, key), TINY, seed=0)
    network = build_network(cfg)
    record = training_record(96, 128, instances=2, classes=6)
    with EventStorage():
        losses = network([record])
    total = torch.stack(list(losses.values())).sum()
    assert torch.isfinite(total)
    total.backward()
    with torch.inference_mode():
        (output,) = network.eval()([record])
    assert output["instances"].pred_masks.shape[1:] == (96, 128)
    assert ((output["instances"].scores >= 0) & (output["instances"].scores <= 1)).all()


def test_a_miniature_table_runs_reports_and_is_not_run_twice(tmp_path: Path) -> None:
    table, lines = TABLES[3], list[str]()
    results = run_table(table, tmp_path, TINY, only=["guided"], speed=(1, 1), tell=lines.append)
    assert list(results) == ["guided"]
    write_table_report(tmp_path / "table-3", build_table_report(table, results, setting={"miniature": True}))
    report = json.loads((tmp_path / "table-3" / "report.json").read_text())
    guided_row = report["rows"][1]
    assert set(guided_row["measured"]) >= {"AP", "APB"}
    assert guided_row["difference"]["AP"] == pytest.approx(guided_row["measured"]["AP"]["mean"] - 37.3)
    again = run_table(table, tmp_path, TINY, only=["guided"], speed=(1, 1), tell=lines.append)
    assert again == results
    assert lines[-1] == "with guidance, seed 0: already measured"


def test_unknown_rows_are_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="table 3 has no row gided; its rows: unguided, guided"):
        run_table(TABLES[3], tmp_path, TINY, only=["gided"])


def test_a_report_marks_quoted_rows_differences_and_spread() -> None:
    table = TABLES[11]
    results = {"transfiner": [{"values": {"AP": 0.24, "APbox": 0.30}}, {"values": {"AP": 0.26}}]}
    text = " ".join(table_report_markdown(build_table_report(table, results, setting={})).split())
    assert "| _HRNet (quoted)_ | 22.5 | 28.2 |" in text
    assert "| Mask Transfiner | 23.6 / **25.0** ± 1.4 (+1.4) | 26.2 / **30.0** (+3.8) |" in text
    assert "| Mask R-CNN | 20.5 / - | 26.1 / - |" in text


def test_results_take_cocos_numbers_and_the_lvis_files_images_and_categories() -> None:
    file = {"categories": [{"id": 44}, {"id": 3}], "images": [{"id": 1}]}
    names = ("car", "bird", "bottle")
    results = [{"image_id": 1, "category_id": number} for number in (3, 2)] + [{"image_id": 2, "category_id": 1}]
    assert renumbered(results, file, names) == [{"image_id": 1, "category_id": 44}]
    with pytest.raises(ValueError, match="the test set has 'blob'"):
        renumbered(results, file, ("car", "blob", "bottle"))
    with pytest.raises(ValueError, match="have 1 categories, some not COCO's"):
        renumbered(results, {"categories": [{"id": 1230}], "images": []}, names)
