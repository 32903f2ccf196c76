"""Detectors that the mask head works with, and other methods' mask branches on the same detector (Tables 9 to 12).

PointRend and Cascade Mask R-CNN are detectron2's own and need no file here.
"""
