"""The adapter under stand-ins for both base classes of label-studio-ml, with the constructors the real ones have."""

from __future__ import annotations

import base64
import importlib
import io
import logging
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image

from model.instance import Instance

pytestmark = pytest.mark.service

CONFIG = """<View><Image name="i" value="$i"/>
  <PolygonLabels name="p" toName="i"><Label value="gear"/></PolygonLabels></View>"""
NAME = "integration.label_studio_ml"
KEY = "0123456789abcdef0123456789abcdef01234567"


class OldBase:
    """label-studio-ml 1.0.9: built for every /setup, told where Label Studio is."""

    def __init__(self, label_config: str | None = None, train_output: Any = None, **kwargs: Any) -> None:
        self.label_config = label_config
        self.hostname = kwargs.get("hostname", "")
        self.access_token = kwargs.get("access_token", "")


class NewBase:
    """label-studio-ml 2.x: built for every request, keeps values for each project."""

    values: dict[tuple[str, str], str]

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.project_id = project_id or ""
        if label_config is not None:
            self.use_label_config(label_config)
        self.setup()

    def setup(self) -> None:
        raise NotImplementedError

    def use_label_config(self, label_config: str) -> None:
        self.set("label_config", label_config)

    @property
    def label_config(self) -> str | None:
        return self.values.get((self.project_id, "label_config"))

    def set(self, key: str, value: str) -> None:
        self.values[self.project_id, key] = value


class FakePredictor:
    labels = ("Gear", "leaf")
    version = "scenes-1"

    def __call__(self, images: list[np.ndarray]) -> list[list[Instance]]:
        masks = [np.ones(image.shape[:2], bool) for image in images]
        return [[Instance((0, 0, 5, 5), "Gear", 0.8, mask)] for mask in masks]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[type], types.ModuleType]]:
    """Import the adapter on top of a base class."""

    def import_on(base: type) -> types.ModuleType:
        package, module = types.ModuleType("label_studio_ml"), types.ModuleType("label_studio_ml.model")
        module.LabelStudioMLBase = base  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "label_studio_ml", package)
        monkeypatch.setitem(sys.modules, "label_studio_ml.model", module)
        sys.modules.pop(NAME, None)
        adapter = importlib.import_module(NAME)
        adapter.TransfinerModel.predictor_factory = staticmethod(FakePredictor)
        return adapter

    NewBase.values = {}
    for name in ("LABEL_STUDIO_URL", "LABEL_STUDIO_HOST", "LABEL_STUDIO_API_KEY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"TRANSFINER_{name}", raising=False)
    yield import_on
    sys.modules.pop(NAME, None)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "PNG")
    return buffer.getvalue()


TASK = {"id": 1, "data": {"i": "data:image/png;base64," + base64.b64encode(png()).decode()}}


class FakePromptPredictor:
    """Outlines the box, less a click that is not the object."""

    version = "photos-1"

    def prompt(self, image: np.ndarray, prompt: Any) -> Instance:
        mask = np.zeros(image.shape[:2], bool)
        x0, y0, x1, y1 = (int(edge) for edge in prompt.box_xyxy)
        mask[y0:y1, x0:x1] = True
        for x, y, is_positive in prompt.points:
            mask[int(y) - 3 : int(y) + 3, int(x) - 3 : int(x) + 3] = is_positive
        return Instance(prompt.box_xyxy, "", 0.3, mask)


@pytest.mark.parametrize("base", [OldBase, NewBase])
def test_smart_tools_are_answered_and_a_click_is_about_the_box_before(load: Any, base: type) -> None:
    adapter = load(base)
    adapter.TransfinerModel.prompt_predictor_factory = staticmethod(FakePromptPredictor)
    shape = {"x": 10, "y": 10, "width": 60, "height": 60, "rectanglelabels": ["gear"]}
    box = {"id": "b", "type": "rectanglelabels", "value": shape}
    click = {
        "id": "k",
        "type": "keypointlabels",
        "is_positive": False,
        "value": {"x": 65, "y": 40, "width": 1, "keypointlabels": ["gear"]},
    }

    def ask(*regions: dict[str, Any]) -> dict[str, Any]:
        model = adapter.TransfinerModel(label_config=CONFIG)  # built anew for every request
        (answer,) = model.predict([TASK], context={"result": list(regions)}, login=None, password=None)
        assert answer["model_version"] == "photos-1"
        return answer

    (first,), (second,) = ask(box)["result"], ask(click)["result"]
    assert first["value"]["polygonlabels"] == second["value"]["polygonlabels"] == ["gear"]
    assert first["id"] == second["id"]
    assert first["value"]["points"] != second["value"]["points"]
    assert ask(click, {**click, "id": "l", "value": {**click["value"], "keypointlabels": ["whale"]}})["result"] == []


@pytest.mark.parametrize("base", [OldBase, NewBase])
def test_predictions_are_valid_and_one_a_task(load: Any, base: type) -> None:
    model = load(base).TransfinerModel(label_config=CONFIG)
    good, bad = model.predict([TASK, {"id": 2, "data": {}}], context=None, login=None, password=None)
    assert bad == []
    assert LabelInterface(CONFIG).validate_prediction({"model_version": "v", **good}, return_errors=True) == []
    assert good["result"][0]["value"]["polygonlabels"] == ["gear"]
    assert (good["result"][0]["original_width"], good["result"][0]["original_height"]) == (40, 30)


def test_versions_are_those_that_setup_tells_label_studio(load: Any) -> None:
    new_model = load(NewBase).TransfinerModel("7", label_config=CONFIG)
    assert new_model.values["7", "model_version"] == "scenes-1"
    assert new_model.predict([TASK])[0]["model_version"] == "scenes-1"
    old_model = load(OldBase).TransfinerModel(label_config=CONFIG)
    assert "model_version" not in old_model.predict([TASK])[0]  # /setup of 1.0.9 says "INITIAL"


@pytest.mark.parametrize(
    ("config", "words"), [(None, "is empty"), ("<View/>", "no <Image"), (CONFIG.replace("gear", "whale"), "'whale'")]
)
@pytest.mark.parametrize("base", [OldBase, NewBase])
def test_what_cannot_be_predicted_is_logged(
    load: Any, base: type, config: str | None, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        assert load(base).TransfinerModel(label_config=config).predict([TASK, TASK]) == [[], []]
    assert words in caplog.text


def test_the_key_of_the_settings_goes_to_the_address_of_the_settings_only(
    load: Any, make_loopback: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, claimed = make_loopback(), make_loopback()
    task = {"id": 1, "data": {"i": "/data/upload/1/a.png"}}
    for server in (ours, claimed):
        server.give("/data/upload/1/a.png", png())
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", KEY)
    claim = {"hostname": claimed.url, "access_token": "f" * 40}
    load(OldBase).TransfinerModel(label_config=CONFIG, **claim).predict([task])
    assert claimed.requests[0].headers["Authorization"] == "Token " + "f" * 40
    monkeypatch.setenv("TRANSFINER_LABEL_STUDIO_URL", ours.url)
    load(OldBase).TransfinerModel(label_config=CONFIG, **claim).predict([task])
    assert ours.requests[0].headers["Authorization"] == f"Token {KEY}"
    assert len(claimed.requests) == 1


def test_training_is_refused_in_words(load: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert load(NewBase).TransfinerModel(label_config=CONFIG).fit("START_TRAINING", {}) == {}
    assert "transfiner server" in caplog.text
    assert load(OldBase).TransfinerModel(label_config=CONFIG).fit((), event="X", data={}, job_id="1") == {}


def test_the_model_is_loaded_once_a_process(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[tuple[Any, ...]] = []

    class Predictor(FakePredictor):
        @classmethod
        def from_checkpoint(cls, directory: Any, *, device: str) -> Predictor:
            loads.append((str(directory), device))
            return cls()

    module = types.ModuleType("model.inference.predictor")
    module.Predictor = Predictor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "model.inference.predictor", module)
    monkeypatch.setenv("TRANSFINER_MODEL", "/models/one")
    adapter = load(NewBase)
    threads = [threading.Thread(target=adapter.shared_predictor) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == [("/models/one", "auto")]


@pytest.mark.parametrize(("base", "options"), [(OldBase, {"model_dir": "."}), (NewBase, {})])
def test_the_application_is_label_studio_mls_own(
    load: Any, base: type, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MODEL_DIR", raising=False)
    adapter = load(base)
    api = types.ModuleType("label_studio_ml.api")
    api.init_app = lambda **options: options  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "label_studio_ml.api", api)
    assert adapter.create_app() == {"model_class": adapter.TransfinerModel, **options}
