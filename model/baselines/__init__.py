"""Other methods' mask branches on the same detector, to compare with in one run (Tables 9 to 12).

PointRend and Cascade Mask R-CNN are detectron2's own and need no file here. Importing the package registers the rest.
"""

from model.baselines.boundary_preserving import BoundaryPreservingROIHeads
from model.baselines.mask_scoring import MaskScoringROIHeads

__all__ = ["BoundaryPreservingROIHeads", "MaskScoringROIHeads"]
