"""Detectors beside Faster and Cascade R-CNN that the same mask head works with; importing registers them."""

from model.detectors.query_based import TransfinerDETR

__all__ = ["TransfinerDETR"]
