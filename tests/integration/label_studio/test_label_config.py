"""Labelling configurations: what is understood, what is refused and in which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_studio_sdk.label_interface import LabelInterface

from integration.images.fetch import image_value
from integration.label_studio.label_config import LabelConfig, LabelConfigError, parse_label_config

RECORDINGS = sorted((Path(__file__).parents[2] / "recordings").glob("*.json"))
POLYGONS = """<View><Image name="image" value="$image"/>
  <PolygonLabels name="poly" toName="image" {control}>{labels}</PolygonLabels></View>"""


def polygons(labels: str = '<Label value="car"/>', control: str = "") -> LabelConfig:
    return parse_label_config(POLYGONS.format(labels=labels, control=control))


def recorded_configs() -> list[str]:
    configs: set[str] = set()

    def collect(node: object) -> None:
        if isinstance(node, dict):
            configs.update(text for key in ("schema", "label_config") if isinstance(text := node.get(key), str))
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            collect(child)

    for path in RECORDINGS:
        collect(json.loads(path.read_text()))
    return sorted(configs)


@pytest.mark.parametrize("xml", recorded_configs())
def test_recorded_configs_are_read_as_the_sdk_reads_them(xml: str) -> None:
    config = parse_label_config(xml)
    assert config.supported
    assert config.warnings == ()
    for control in config.controls:
        theirs = LabelInterface(xml).get_control(control.name)
        assert list(theirs.labels) == [label.value for label in control.labels]
        assert theirs.tag.lower() == control.labels_type
        assert list(theirs.to_name) == [control.to_name]


def test_there_are_recorded_configs() -> None:
    assert len(recorded_configs()) >= 3


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        ("", "is empty"),
        ("   ", "is empty"),
        (None, "is empty"),
        ("<View>", "not well-formed"),
        ("no xml at all", "not well-formed"),
        ("\ud800", "not well-formed"),
        ('<?xml version="1.0" encoding="no-such"?><View/>', "no <Image"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><View>&b;</View>', "DTD or entities"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><View/>', "DTD or entities"),
        ("<View>" * 200 + "</View>" * 200, "more than 100 deep"),
        ("<View>" + " " * 1_000_001 + "</View>", "at most 1000000"),
        ("<View/>", "no <Image"),
        ('<View><Text name="text" value="$text"/></View>', "no <Image"),
        ('<View><Image name="image" value="$image"/></View>', "no PolygonLabels"),
        (
            '<View><Image name="i" value="$i"/><Choices name="c" toName="i"><Choice value="a"/></Choices></View>',
            "its controls are: choices",
        ),
        (POLYGONS.format(labels="", control=""), "it has no <Label"),
        (POLYGONS.format(labels="", control='value="$labels"'), "labels taken from the task"),
        (POLYGONS.replace("$image", "http://a/b.jpg").format(labels="", control=""), 'no value="$key"'),
        (POLYGONS.replace('toName="image"', 'toName="other"').format(labels="", control=""), 'toName="other"'),
    ],
)
def test_unsupported_configs_say_why(xml: str, reason: str) -> None:
    config = parse_label_config(xml)
    assert not config.supported
    assert reason in (config.reason or "")
    with pytest.raises(LabelConfigError, match=r".+"):
        _ = config.value_key
    assert config.match(["car"]).message == config.reason


def test_tags_and_attributes_in_any_case() -> None:
    config = parse_label_config(
        '<view><image NAME="i" VALUE="$photo"/>'
        '<POLYGONLABELS name="p" toname="i"><label VALUE="a"/></POLYGONLABELS></view>'
    )
    assert config.supported
    assert (config.value_key, config.labels) == ("photo", ("a",))


def test_attributes_of_control_and_label() -> None:
    config = polygons(
        '<Label value="car" model_score_threshold="0.7"/><Label value="bus"/>',
        'model_score_threshold="0.5" model_tolerance_px="2.5" model_max_vertices="40" model_min_area="9" '
        'model_max_regions="7"',
    )
    (control,) = config.controls
    assert [label.score_threshold for label in control.labels] == [0.7, None]
    assert (control.score_threshold, control.tolerance_px, control.max_vertices) == (0.5, 2.5, 40)
    assert (control.min_area_px, control.max_regions) == (9.0, 7)


@pytest.mark.parametrize(
    "attribute",
    [
        'model_score_threshold="high"',
        'model_score_threshold="1.5"',
        'model_score_threshold="nan"',
        'model_tolerance_px="-1"',
        'model_max_vertices="2"',
        'model_max_vertices="3.5"',
        'model_min_area="inf"',
        'model_max_regions="0"',
    ],
)
def test_bad_attributes_are_ignored_with_a_warning(attribute: str) -> None:
    config = polygons(control=attribute)
    assert config.supported
    (warning,) = config.warnings
    assert attribute in warning
    assert "expected" in warning


def test_alias_is_what_results_say_and_both_names_match() -> None:
    xml = POLYGONS.format(labels='<Label value="A long name" alias="car"/>', control="")
    config = parse_label_config(xml)
    assert config.labels == ("car",) == tuple(LabelInterface(xml).get_control("poly").labels)
    for name in ("car", "a LONG  name"):
        assert [target.label.value for target in config.match([name]).targets(name)] == ["car"]


@pytest.mark.parametrize(
    ("labels", "class_name", "expected"),
    [
        ('<Label value="Car"/>', "car", "Car"),
        ('<Label value=" car "/>', "CAR", "car"),
        ('<Label value="vehicle" predicted_values="car, Truck"/>', "truck", "vehicle"),
        ('<Label value="vehicle" predicted_values="car"/><Label value="car"/>', "car", "vehicle"),
        ('<Label value="thing" predicted_values="*"/><Label value="car"/>', "car", "car"),
        ('<Label value="thing" predicted_values="*"/><Label value="car"/>', "dog", "thing"),
        ('<Label value="STRASSE"/>', "straße", "STRASSE"),
        ('<Label value="car"/>', "carriage", None),
        ('<Label value="car" predicted_values=""/>', "car", "car"),
    ],
)
def test_classes_find_their_labels(labels: str, class_name: str, expected: str | None) -> None:
    targets = polygons(labels).match([class_name]).targets(class_name)
    assert [target.label.value for target in targets] == ([expected] if expected else [])


def test_nothing_matches_names_both_lists_and_the_fix() -> None:
    classes = polygons('<Label value="person"/><Label value="car"/>').match(["gear", "leaf"])
    message = classes.message or ""
    assert all(word in message for word in ("'person'", "'car'", "'gear'", "'leaf'", "predicted_values"))
    assert classes.unmatched_labels == ("person", "car")


def test_a_partial_match_is_no_problem() -> None:
    classes = polygons('<Label value="person"/><Label value="car"/>').match(["car", "gear"])
    assert classes.message is None
    assert classes.unmatched_labels == ("person",)


def test_kinds_come_polygons_first_whatever_the_order_of_tags() -> None:
    xml = """<View><Image name="i" value="$i"/>
      <RectangleLabels name="r" toName="i"><Label value="a"/></RectangleLabels>
      <BrushLabels name="b" toName="i"><Label value="a"/></BrushLabels>
      <PolygonLabels name="p" toName="i"><Label value="a"/></PolygonLabels>
      <KeyPointLabels name="k" toName="i"><Label value="a"/></KeyPointLabels></View>"""
    targets = parse_label_config(xml).match(["a"]).targets("a")
    assert [target.control.kind for target in targets] == ["polygon", "brush", "rectangle"]


@pytest.mark.parametrize(
    ("labels_tag", "kind"),
    [
        ('<Labels name="l" toName="i"><Label value="a"/></Labels>', "labels"),
        ('<Choices name="l" toName="i" perRegion="true"><Choice value="a"/></Choices>', "choices"),
    ],
)
def test_geometry_and_labels_in_tags_of_their_own(labels_tag: str, kind: str) -> None:
    config = parse_label_config(f'<View><Image name="i" value="$i"/><Polygon name="p" toName="i"/>{labels_tag}</View>')
    (control,) = config.controls
    assert (control.kind, control.name, control.labels_name, control.labels_type) == ("polygon", "p", "l", kind)
    assert control.is_paired


def test_choices_about_the_whole_image_label_no_region() -> None:
    config = parse_label_config(
        '<View><Image name="i" value="$i"/><Polygon name="p" toName="i"/>'
        '<Choices name="c" toName="i"><Choice value="a"/></Choices></View>'
    )
    assert "has no <Label" in (config.reason or "")


def test_only_the_first_image_is_predicted_and_the_rest_is_named() -> None:
    config = parse_label_config(
        """<View><Image name="left" value="$l"/><Image name="right" value="$r"/>
        <PolygonLabels name="a" toName="left"><Label value="x"/></PolygonLabels>
        <PolygonLabels name="b" toName="right"><Label value="x"/></PolygonLabels></View>"""
    )
    assert [control.name for control in config.controls] == ["a"]
    assert config.value_key == "l"
    assert "right" in config.warnings[0]


def test_model_skip_leaves_a_control_alone() -> None:
    assert not polygons(control='model_skip="true"').supported


TAGS = st.sampled_from(
    ["View", "Image", "PolygonLabels", "Polygon", "Labels", "Label", "Choices", "Choice", "BrushLabels", "Style"]
)
ATTRIBUTES = st.dictionaries(
    st.sampled_from(
        ["name", "toName", "value", "alias", "predicted_values", "model_score_threshold", "model_max_vertices"]
    ),
    st.sampled_from(["image", "$image", "a", "a,b", "", "0.5", "-1", "nan", "é", "$", "*"]),
)


@st.composite
def elements(draw: st.DrawFn, depth: int = 3) -> str:
    tag, attributes = draw(TAGS), draw(ATTRIBUTES)
    inside = "".join(draw(st.lists(elements(depth=depth - 1), max_size=4))) if depth else ""
    attribute_text = " ".join(f'{name}="{value}"' for name, value in attributes.items())
    return f"<{tag} {attribute_text}>{inside}</{tag}>"


@given(elements())
def test_any_xml_is_read_or_refused_with_a_reason(xml: str) -> None:
    config = parse_label_config(xml)
    if config.supported:
        assert config.controls
        assert config.value_key
        assert all(control.labels and control.name for control in config.controls)
    else:
        assert config.reason
    config.match(["a", "b"])


@given(st.text())
def test_any_text_is_refused_with_a_reason(text: str) -> None:
    assert parse_label_config(text).reason


@pytest.mark.parametrize(("flag", "attribute"), [("{{idx}}", ""), ("{{n}}", 'indexFlag="{{n}}"')])
def test_a_repeater_is_read_as_its_first_entry(flag: str, attribute: str) -> None:
    config = parse_label_config(
        f'<View><Repeater on="$images" {attribute}><Image name="page_{flag}" value="$images[{flag}].url"/>'
        f'<PolygonLabels name="label_{flag}" toName="page_{flag}">'
        '<Label value="car"/></PolygonLabels></Repeater></View>'
    )
    (control,) = config.controls
    assert (control.name, control.to_name) == ("label_0", "page_0")
    assert "only the first entry of its list is predicted" in config.warnings[0]
    task = {"data": {"images": [{"url": "https://x/a.png"}, {"url": "https://x/b.png"}]}}
    assert image_value(task, config.value_key) == "https://x/a.png"
