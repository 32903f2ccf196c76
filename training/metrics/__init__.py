"""Metrics of COCO, LVIS, Cityscapes and BDD100K on arrays and files. Needs no torch and no data set."""
