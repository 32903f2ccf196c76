"""POST /predict through real HTTP, queue and worker processes, with a fake model."""

from __future__ import annotations

import requests
from service_parts import predict_body, tasks

from integration.label_config import parse_label_config  # noqa: F401


def test_results_come_in_task_order_with_the_version_on_each(settings, serve, workers):
    workers.start(max_batch=3)
    body = requests.post(f"{serve(settings)}/predict", json=predict_body(tasks(7)), timeout=30).json()
    assert len(body["results"]) == 7
    assert "errors" not in body
    for item in body["results"]:
        assert item["model_version"] == "fake-1"
        assert 0 <= item["score"] <= 1
        assert [region["type"] for region in item["result"]] == ["polygonlabels"]
        assert item["result"][0]["value"]["polygonlabels"] == ["gear"]
