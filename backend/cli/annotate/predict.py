"""`transfiner predict`: outline the objects of image files with any checkpoint, or the boxes of any detector."""

from __future__ import annotations

import base64
import colorsys
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from backend.cli.types import EXISTING_FILE, device_option, did_you_mean, plain_errors, read_label_config_file
from backend.versions.store import DEFAULT_STORE, find_model
from integration.label_studio.label_config import LabelConfig, Output, parse_label_config
from model.errors import require_model_libraries
from model.images import read_image
from model.instance import Instance
from training.datasets.pictures import tinted
from training.metrics.coco_schema import read_json

if TYPE_CHECKING:
    from model.inference.prompt_predictor import PromptPredictor

Box = tuple[float, float, float, float]
#: Side of the smallest box that is outlined, in px.
LEAST_SIDE_PX = 1.0


@dataclass(frozen=True)
class DetectedBox:
    """A box in pixels of the upright image, with its class and score."""

    box_xyxy: Box
    label: str
    score: float


class BoxFile:
    """A COCO results file: a JSON list of objects with `bbox` (x, y, width, height), `score`, an image and a class.

    The image is `file_name`, with or without folders, or `image_id` as `transfiner predict` numbers images, or the
    file's name as text; the class is `category`, or `category_id` as COCO numbers its classes.

    Args:
        image_id_of: (file, its place among all) -> COCO's image id.

    Raises:
        ValueError: it is no such list; names the first wrong record.
    """

    def __init__(self, file: Path, image_id_of: Callable[[Path, int], int], names: dict[int, str]) -> None:
        self._file, self._image_id_of = file, image_id_of
        self._of_image: dict[str, list[DetectedBox]] = defaultdict(list)
        self._used_keys: set[str] = set()
        records = read_json(file)
        if not isinstance(records, list):
            raise ValueError(f"{file} holds a {type(records).__name__}, expected a list of COCO results")
        for number, record in enumerate(records):
            try:
                image = record["file_name"] if "file_name" in record else record["image_id"]
                if not isinstance(image, str | int):
                    raise TypeError(f"its image is {image!r:.40}")
                self._of_image[_key(image)].append(_detected(record, names))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{file}, record {number}: {error!r}; expected bbox [x, y, width, height], score, image_id or "
                    "file_name, category_id or category"
                ) from error
        self._of_name: dict[str, list[str]] = defaultdict(list)
        for key in self._of_image:
            self._of_name[key.rpartition("/")[2]].append(key)
        self.labels = tuple(dict.fromkeys(box.label for boxes in self._of_image.values() for box in boxes))

    def boxes(self, file: Path, number: int) -> list[DetectedBox]:
        """The boxes of an image, the best score first."""
        path = _key(file.as_posix())
        ends = [path, *(path.split("/", depth)[-1] for depth in range(1, path.count("/") + 1))]
        same_name = self._of_name.get(file.name, [])
        keys = [*ends, *(same_name if len(same_name) == 1 else ()), file.stem, _key(self._image_id_of(file, number))]
        key = next((key for key in keys if key in self._of_image), "")
        self._used_keys.add(key)
        return sorted(self._of_image.get(key, []), key=lambda box: -box.score)

    def left_out(self) -> str:
        """Say which images of the file were not predicted; "" where all were."""
        unused_keys = sorted(self._of_image.keys() - self._used_keys)
        if not unused_keys:
            return ""
        return f"{len(unused_keys)} images of {self._file} are none of those given, such as {unused_keys[0]!r:.80}"


def _key(image: str | int) -> str:
    """An image's name with slashes, or its number as text without leading zeros."""
    text = str(image).strip().replace("\\", "/").removeprefix("./")
    return str(int(text)) if text.isascii() and text.isdigit() else text


def _detected(record: dict[str, Any], names: dict[int, str]) -> DetectedBox:
    x, y, width, height = (float(value) for value in record["bbox"])
    if not np.isfinite([x, y, width, height]).all() or width < 0 or height < 0:
        raise ValueError(f"bbox is {record['bbox']}")
    label = record["category"] if "category" in record else names.get(int(record["category_id"]))
    box = (x, y, x + max(width, LEAST_SIDE_PX), y + max(height, LEAST_SIDE_PX))
    return DetectedBox(box, str(label or record["category_id"]), float(record["score"]))


def outline_boxes(
    predictor: PromptPredictor, image_rgb: np.ndarray, boxes: Sequence[DetectedBox], score_threshold: float
) -> list[Instance]:
    """Outline the object in each box that reaches the threshold; it takes the box's class and score."""
    chosen_boxes = [box for box in boxes if box.score >= score_threshold]
    instances = predictor.image(image_rgb).prompt_boxes([box.box_xyxy for box in chosen_boxes])
    return [
        replace(instance, label=box.label, score=box.score)
        for instance, box in zip(instances, chosen_boxes, strict=True)
    ]


def image_id_of(file: Path, number: int) -> int:
    """COCO's image id: the number in the file's name (000000008844.jpg is 8844), else the file's place from 1."""
    return int(file.stem) if file.stem.isdecimal() else number + 1


def category_ids_of(labels: Sequence[str]) -> dict[str, int]:
    """Category ids: COCO's own (with their gaps) for the 80 COCO classes, else the model's class numbers from 1."""
    # Imported here, because detectron2 is slow to import.
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    coco = {category["name"]: category["id"] for category in COCO_CATEGORIES if category["isthing"]}
    if set(labels) == set(coco):
        return coco
    return {label: number for number, label in enumerate(labels, start=1)}


# Turning by the golden ratio keeps the colours of neighbours apart, however many there are.
GOLDEN_TURN = 0.61803399


def draw_overlay(image_rgb: np.ndarray, instances: Sequence[Instance]) -> Image.Image:
    """Draw every instance on the image in a bright colour of its own, the best ones on top."""
    hues = [number * GOLDEN_TURN % 1 for number in range(len(instances))]
    colours = [tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.8, 1.0)) for hue in hues]
    worst_first = list(zip(instances, colours, strict=True))[::-1]
    masks, mask_colours = [instance.mask_hw for instance, _ in worst_first], [np.array(rgb) for _, rgb in worst_first]
    picture = Image.fromarray(tinted(image_rgb, masks, mask_colours))
    for instance, colour in worst_first:
        _write_label(picture, instance, colour)
    return picture


def _write_label(picture: Image.Image, instance: Instance, colour: tuple[int, ...]) -> None:
    size_px = max(11, round(min(picture.size) / 40))
    font = ImageFont.load_default(size_px)
    text = f"{instance.label} {instance.score:.2f}"
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    x = min(max(instance.box_xyxy[0], 0), max(picture.width - right, 0))
    y = min(max(instance.box_xyxy[1] - bottom, 0), max(picture.height - bottom, 0))
    draw.rectangle((x + left - 1, y + top - 1, x + right + 1, y + bottom + 1), fill=colour)
    draw.text((x, y), text, font=font, fill="black")


@dataclass(frozen=True)
class PredictedImageFile:
    """An image file, its place in the command line (from 0), its pixels (H x W x 3) and its instances."""

    file: Path
    number: int
    image_rgb: np.ndarray
    instances: Sequence[Instance]


#: Turns an image into output: records of JSON, or paths of pictures.
Writer = Callable[[PredictedImageFile], list[Any]]


def coco_writer(labels: Sequence[str]) -> Writer:
    """Write COCO results, with the names of file and class beside COCO's ids.

    One record an instance: bbox in x, y, width, height; the mask as compressed RLE.
    """
    from training.evaluation.coco_format import encode

    category_ids = category_ids_of(labels)

    def write(prediction_of_file: PredictedImageFile) -> list[Any]:
        records = []
        for instance in prediction_of_file.instances:
            left, top, right, bottom = instance.box_xyxy
            mask = encode(instance.mask_hw)
            record = {
                "image_id": image_id_of(prediction_of_file.file, prediction_of_file.number),
                "category_id": category_ids[instance.label],
                "bbox": [round(value, 3) for value in (left, top, right - left, bottom - top)],
                "score": instance.score,
                "segmentation": {**mask, "counts": mask["counts"].decode("ascii")},
                "file_name": prediction_of_file.file.name,
                "category": instance.label,
                "uncertainty": instance.uncertainty,
            }
            records.append(record)
        return records

    return write


AddressOf = Callable[[Path], str]
#: Label Studio's editor is slow with tasks that hold larger files as data URIs.
_MOST_INLINE_BYTES = 1_000_000
_MEDIA_TYPES = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp", ".gif": "gif", ".bmp": "bmp"}


def address_under(prefix: str) -> AddressOf:
    """Make a function that gives the address of a file in a task.

    Args:
        prefix: put before a file's path, such as ``/data/local-files/?d=photos/`` or ``https://host/``; "data": the
            files themselves, as data URIs; "": paths as they are, which Label Studio cannot show.
    """

    def address(file: Path) -> str:
        if prefix == "data":
            return _inline(file)
        path = file.as_posix()
        return prefix + quote(path.removeprefix("./").lstrip("/")) if prefix else path

    return address


def _inline(file: Path) -> str:
    """Encode a file as data URI. Raises ValueError when it is too large, or no browser shows its format."""
    media_type, size_bytes = _MEDIA_TYPES.get(file.suffix.lower()), file.stat().st_size
    if media_type is None or size_bytes > _MOST_INLINE_BYTES:
        raise ValueError(
            f"{file} has {size_bytes} bytes and ends in {file.suffix!r}; a task holds files of at most "
            f"{_MOST_INLINE_BYTES} bytes and {', '.join(_MEDIA_TYPES)}. Give the address of the files with "
            "--image-prefix, as /data/local-files/?d=photos/ or https://host/photos/"
        )
    return f"data:image/{media_type};base64,{base64.b64encode(file.read_bytes()).decode()}"


def label_studio_writer(config: LabelConfig, version: str, tolerance_px: float, address: AddressOf) -> Writer:
    """Write tasks with a prediction, ready for Label Studio's import; `address` gives their image addresses."""
    config.require_supported()

    def write(prediction_of_file: PredictedImageFile) -> list[Any]:
        # Imported here: the geometry libraries take a second, which an error message should not wait for.
        from integration.regions.write import build_prediction

        height, width = prediction_of_file.image_rgb.shape[:2]
        prediction, _ = build_prediction(
            prediction_of_file.instances,
            config,
            width=width,
            height=height,
            model_version=version,
            output=Output(tolerance_px=tolerance_px),
            seed=str(prediction_of_file.file),
        )
        return [{"data": {config.value_key: address(prediction_of_file.file)}, "predictions": [prediction]}]

    return write


def overlay_writer(folder: Path) -> Writer:
    """Write a PNG for each image into `folder`, named like it; images of the same name get a number, too."""
    used_paths: set[Path] = set()

    def write(prediction_of_file: PredictedImageFile) -> list[Any]:
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{prediction_of_file.file.stem}.png"
        if target in used_paths:
            target = folder / f"{prediction_of_file.file.stem}-{prediction_of_file.number + 1}.png"
        used_paths.add(target)
        draw_overlay(prediction_of_file.image_rgb, prediction_of_file.instances).save(target)
        return [str(target)]

    return write


def read_label_config(file: Path | None, labels: Sequence[str]) -> LabelConfig:
    """Read the label config in a file; without a file: polygons with the model's own labels."""
    if file is not None:
        return parse_label_config(read_label_config_file(file))
    tags = "".join(f"<Label value={quoteattr(label)}/>" for label in labels)
    return parse_label_config(
        '<View><Image name="image" value="$image"/>'
        f'<PolygonLabels name="label" toName="image">{tags}</PolygonLabels></View>'
    )


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", "--weights", "model", default="photos", help="Checkpoint directory or name.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(("coco", "label-studio", "overlay")),
    default="coco",
    help="COCO results, Label Studio tasks, or pictures with the objects drawn on.",
)
@click.option("--output", type=click.Path(path_type=Path), help="JSON file, or folder of the pictures.")
@click.option("--label-config", "config_file", type=EXISTING_FILE, help="Labeling config, for label-studio.")
@click.option(
    "--image-prefix",
    default="data",
    help="For label-studio: what stands before a path, as /data/local-files/?d=photos/ or https://host/; "
    "data: small files in the tasks themselves.",
)
@click.option("--boxes", "boxes_file", type=EXISTING_FILE, help="COCO results of another detector to outline.")
@click.option("--score-threshold", type=click.FloatRange(0, 1), default=0.5)
@click.option("--tolerance-px", type=click.FloatRange(min=0), default=1.0)
@device_option
@click.option(
    "--precision",
    type=click.Choice(("fp32", "bf16", "auto")),
    default="fp32",
    help="On a CPU; auto: bf16 where that is fast and measured.",
)
@click.option("--store", type=click.Path(path_type=Path), default=DEFAULT_STORE)
@click.option("--json", "as_json", is_flag=True, help="For overlay: print the written files as JSON.")
def predict(
    images: tuple[Path, ...],
    model: str,
    kind: str,
    output: Path | None,
    config_file: Path | None,
    image_prefix: str,
    boxes_file: Path | None,
    score_threshold: float,
    tolerance_px: float,
    device: str,
    precision: str,
    store: Path,
    as_json: bool,
) -> None:
    """Outline objects in images: COCO results, Label Studio tasks or pictures.

    JSON goes to standard output unless --output names a file. Pictures go to the folder of --output (`overlays`).
    Images that cannot be read are reported, the others go on, and the exit code is 1. With --boxes the objects are
    those of a JSON file of COCO results (bbox, score, image_id or file_name, category_id or category), outlined by a
    promptable model.

    \b
    Example: transfiner predict photos/*.jpg --format overlay --output outlined
    Example: transfiner predict photos/*.jpg --boxes detections.json --output outlines.json
    """
    missing_images = [image for image in images if not image.is_file()]
    if len(missing_images) == len(images):
        raise click.ClickException(_missing_images(missing_images))
    with plain_errors():
        directory = find_model(model, store)
        if kind == "label-studio" and image_prefix == "data":
            for image in set(images) - set(missing_images):
                _inline(image)  # refused before anything is computed
        require_model_libraries()
        outliner = _outliner(directory, boxes_file, device, score_threshold, precision)
        writer = _writer(kind, outliner, output, config_file, tolerance_px, image_prefix)
        records, failures = _predict_all(outliner, images, writer)
        _print(records, kind, output, as_json)
    if note := outliner.note():
        click.echo(f"Note: {note}", err=True)
    for message in failures:
        click.echo(f"Error: {message}", err=True)
    if failures:
        sys.exit(1)


def _missing_images(images: Sequence[Path]) -> str:
    """Error message for images that do not exist, with the nearest name in the folder of the first."""
    first_image = images[0]
    folder = first_image.parent
    kind = "is a folder" if first_image.is_dir() else "does not exist"
    expected = f"{first_image}/*.jpg" if first_image.is_dir() else "an image file"
    other_images = f" (nor do {len(images) - 1} others)" if len(images) > 1 else ""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() and not first_image.is_dir() else []
    suggestion = did_you_mean(first_image.name, names) or f"Correct the path; it is looked for in {folder.absolute()}."
    return f"image is '{first_image}', which {kind}{other_images}; expected {expected}. {suggestion}"


Batch = Sequence[tuple[Path, int, np.ndarray]]


@dataclass(frozen=True)
class _Outliner:
    """Outlines batches of (file, its place in the command line, pixels); `note` says what was left out."""

    labels: tuple[str, ...]
    version: str
    images_at_once: int
    outline: Callable[[Batch], list[list[Instance]]]
    note: Callable[[], str] = str


def _outliner(
    directory: Path, boxes_file: Path | None, device: str, score_threshold: float, precision: str
) -> _Outliner:
    """Load the model with its own detector, or for a file of boxes its promptable network."""
    if boxes_file is None:
        from model.inference.predictor import Predictor

        predictor = Predictor.from_checkpoint(
            directory, device=device, score_threshold=score_threshold, precision=precision
        )
        return _Outliner(
            predictor.labels,
            predictor.version,
            predictor.images_at_once,
            lambda batch: predictor([image for *_, image in batch]),
        )
    from model.checkpoints.metadata import read_metadata
    from model.inference.prompt_predictor import PromptPredictor

    ids = category_ids_of(read_metadata(directory)["classes"])
    boxes = BoxFile(boxes_file, image_id_of, {number: label for label, number in ids.items()})
    prompts = PromptPredictor.from_checkpoint(directory, device=device, precision=precision)
    return _Outliner(
        boxes.labels,
        prompts.version,
        1,
        lambda batch: [
            outline_boxes(prompts, image, boxes.boxes(file, number), score_threshold) for file, number, image in batch
        ],
        boxes.left_out,
    )


def _writer(
    kind: str,
    outliner: _Outliner,
    output: Path | None,
    config_file: Path | None,
    tolerance_px: float,
    image_prefix: str,
) -> Writer:
    if kind == "coco":
        return coco_writer(outliner.labels)
    if kind == "overlay":
        return overlay_writer(output or Path("overlays"))
    if not image_prefix:
        click.echo("Note: Label Studio cannot show paths of this machine; give --image-prefix.", err=True)
    config = read_label_config(config_file, outliner.labels)
    return label_studio_writer(config, outliner.version, tolerance_px, address_under(image_prefix))


def _predict_all(outliner: _Outliner, files: Sequence[Path], write: Writer) -> tuple[list[Any], list[str]]:
    """Records that the writer makes of every readable image, and error messages of the others."""
    records: list[Any] = []
    failures: list[str] = []
    with click.progressbar(length=len(files), label="images", file=sys.stderr) as bar:
        for start in range(0, len(files), outliner.images_at_once):
            batch: list[tuple[Path, int, np.ndarray]] = []
            for number in range(start, min(start + outliner.images_at_once, len(files))):
                try:
                    batch.append((files[number], number, read_image(files[number])))
                except (ValueError, OSError) as error:
                    failures.append(str(error))
            for (file, number, image), instances in zip(batch, outliner.outline(batch), strict=True):
                records += write(PredictedImageFile(file, number, image, instances))
            bar.update(outliner.images_at_once)
    return records, failures


def _print(records: list[Any], kind: str, output: Path | None, as_json: bool) -> None:
    if kind == "overlay":
        click.echo(json.dumps(records) if as_json else "\n".join(records))
    elif output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(records) + "\n", encoding="utf-8")
        click.echo(f"{output}: {len(records)} records", err=True)
    else:
        click.echo(json.dumps(records))
