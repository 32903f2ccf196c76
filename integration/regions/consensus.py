"""What several annotators of one image agree on.

Objects of different annotators are the same when their masks overlap (IoU); the closest pairs are joined first, and an
object joins at most one of each annotator. More than half of the annotators must have drawn it, and more than half of
those must have labelled it alike.

Shapes: H, W mask size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from integration.regions.read import AnnotatedObject
from model.instance import iou_matrix

SAME_IOU = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Consensus:
    """The objects of an image after a vote.

    Attributes:
        objects: what the majority drew. Each pixel follows the majority of those who drew the object, in a tie the
            latest of them; label ids and kinds are of that one too.
        disputed: what no majority drew, or not with one label: neither an object nor background.
    """

    objects: tuple[AnnotatedObject, ...]
    disputed: tuple[AnnotatedObject, ...]
    agreement: float


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    annotator: int
    drawn: AnnotatedObject


def vote(drawings: Sequence[Sequence[AnnotatedObject]], *, same_iou: float = SAME_IOU) -> Consensus:
    """Vote on the objects of one image.

    Args:
        drawings: the objects of each annotator, whoever submitted last in the last place; masks of one size.
        same_iou: least IoU of two drawings of one object.
    """
    everything = [_Drawn(a, drawn) for a, drawings_of in enumerate(drawings) for drawn in drawings_of]
    objects, disputed, agreed = [], [], 0
    for group in _groups(everything, same_iou):
        label, votes = Counter(shape.drawn.label for shape in group).most_common(1)[0]
        if 2 * len(group) > len(drawings) and 2 * votes > len(group):
            objects.append(_united(group, label))
            agreed += len(group)
        else:
            disputed.append(group[-1].drawn)
    return Consensus(tuple(objects), tuple(disputed), agreed / len(everything) if everything else 1.0)


def _groups(everything: Sequence[_Drawn], same_iou: float) -> list[list[_Drawn]]:
    """Objects that are one, each group by annotator (the latest last), groups by their first object."""
    masks = [shape.drawn.mask_hw for shape in everything]
    overlaps = iou_matrix(masks, masks)
    pairs = []
    for i, k in combinations(range(len(everything)), 2):
        shape, other = everything[i], everything[k]
        if shape.annotator != other.annotator and overlaps[i, k] >= same_iou:
            pairs.append((-overlaps[i, k], i, k))
    group_of = {i: [i] for i in range(len(everything))}
    for _, i, k in sorted(pairs):
        here, there = group_of[i], group_of[k]
        annotators = [everything[n].annotator for n in here + there]
        if here is not there and len(set(annotators)) == len(annotators):
            here += there
            group_of |= dict.fromkeys(there, here)
    distinct = {id(group): group for group in group_of.values()}
    return [sorted((everything[n] for n in group), key=lambda shape: shape.annotator) for group in distinct.values()]


def _united(group: Sequence[_Drawn], label: str) -> AnnotatedObject:
    votes = np.sum([shape.drawn.mask_hw for shape in group], axis=0, dtype=np.int32) * 2
    latest = group[-1].drawn
    mask_hw = (votes > len(group)) | ((votes == len(group)) & latest.mask_hw)
    return replace(latest, label=label, mask_hw=mask_hw if mask_hw.any() else latest.mask_hw)
