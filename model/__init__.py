"""Mask Transfiner on Detectron2: network, checkpoints, predictor. Importing this package alone never imports torch."""
