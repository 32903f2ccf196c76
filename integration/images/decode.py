"""Image files to RGB arrays as serving needs them: by the decoder that training and evaluation use too."""

from model.images import FORMATS, ImageError, decode_image

__all__ = ["FORMATS", "ImageError", "decode_image"]
