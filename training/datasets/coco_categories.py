"""COCO's 80 categories: id, name, and the WordNet synset under which LVIS has the same thing.

The synsets are those that PointRend's cocofied LVIS uses: ids and names are COCO's, the pairing is a fact of that
protocol (a cow is LVIS's ``beef.n.01``, a handbag ``bag.n.04``).

LVIS cut to COCO's 80 categories, the ground truth of PointRend's AP*.

Source: detectron2's protocol: LVIS categories are kept by synset and take COCO's ids, with their annotations and their
places in the lists of absent and of not fully drawn categories; images stay. Categories that occur nowhere go.
"""

from __future__ import annotations

from typing import Any

_LISTED = """
1 person person.n.01; 2 bicycle bicycle.n.01; 3 car car.n.01; 4 motorcycle motorcycle.n.01; 5 airplane airplane.n.01;
6 bus bus.n.01; 7 train train.n.01; 8 truck truck.n.01; 9 boat boat.n.01; 10 traffic_light traffic_light.n.01;
11 fire_hydrant fireplug.n.01; 13 stop_sign stop_sign.n.01; 14 parking_meter parking_meter.n.01; 15 bench bench.n.01;
16 bird bird.n.01; 17 cat cat.n.01; 18 dog dog.n.01; 19 horse horse.n.01; 20 sheep sheep.n.01; 21 cow beef.n.01;
22 elephant elephant.n.01; 23 bear bear.n.01; 24 zebra zebra.n.01; 25 giraffe giraffe.n.01; 27 backpack backpack.n.01;
28 umbrella umbrella.n.01; 31 handbag bag.n.04; 32 tie necktie.n.01; 33 suitcase bag.n.06; 34 frisbee frisbee.n.01;
35 skis ski.n.01; 36 snowboard snowboard.n.01; 37 sports_ball ball.n.06; 38 kite kite.n.03;
39 baseball_bat baseball_bat.n.01; 40 baseball_glove baseball_glove.n.01; 41 skateboard skateboard.n.01;
42 surfboard surfboard.n.01; 43 tennis_racket tennis_racket.n.01; 44 bottle bottle.n.01; 46 wine_glass wineglass.n.01;
47 cup cup.n.01; 48 fork fork.n.01; 49 knife knife.n.01; 50 spoon spoon.n.01; 51 bowl bowl.n.03; 52 banana banana.n.02;
53 apple apple.n.01; 54 sandwich sandwich.n.01; 55 orange orange.n.01; 56 broccoli broccoli.n.01; 57 carrot carrot.n.01;
58 hot_dog frank.n.02; 59 pizza pizza.n.01; 60 donut doughnut.n.02; 61 cake cake.n.03; 62 chair chair.n.01;
63 couch sofa.n.01; 64 potted_plant pot.n.04; 65 bed bed.n.01; 67 dining_table dining_table.n.01; 70 toilet toilet.n.02;
72 tv television_receiver.n.01; 73 laptop laptop.n.01; 74 mouse mouse.n.04; 75 remote remote_control.n.01;
76 keyboard computer_keyboard.n.01; 77 cell_phone cellular_telephone.n.01; 78 microwave microwave.n.02;
79 oven oven.n.01; 80 toaster toaster.n.02; 81 sink sink.n.01; 82 refrigerator electric_refrigerator.n.01;
84 book book.n.01;
85 clock clock.n.01; 86 vase vase.n.01; 87 scissors scissors.n.01; 88 teddy_bear teddy.n.01;
89 hair_drier hand_blower.n.01; 90 toothbrush toothbrush.n.01
"""


def _row(text: str) -> tuple[int, str, str]:
    number, name, synset = text.split()
    return int(number), name.replace("_", " "), synset


COCO_CATEGORIES: tuple[tuple[int, str, str], ...] = tuple(map(_row, _LISTED.split(";")))


_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


def cocofied(lvis: dict[str, Any]) -> dict[str, Any]:
    """The cut file of an LVIS file (v0.5 for the published numbers: v1's val has images outside COCO val2017)."""
    coco_of = {synset: number for number, _, synset in COCO_CATEGORIES}
    kept = {
        category["id"]: coco_of[category["synset"]] for category in lvis["categories"] if category["synset"] in coco_of
    }
    images = [
        image | {name: [kept[number] for number in image[name] if number in kept] for name in _LISTS}
        for image in lvis["images"]
    ]
    chosen = [annotation for annotation in lvis["annotations"] if annotation["category_id"] in kept]
    annotations = [
        annotation | {"category_id": kept[annotation["category_id"]], "id": index}
        for index, annotation in enumerate(chosen, 1)
    ]
    used = {annotation["category_id"] for annotation in annotations}
    used |= {number for image in images for name in _LISTS for number in image[name]}
    categories = [
        category | {"id": kept[category["id"]]} for category in lvis["categories"] if kept.get(category["id"]) in used
    ]
    return lvis | {"images": images, "annotations": annotations, "categories": categories}
