"""The Mask Transfiner mask branch, in the order of its data; `head.py` is the way in."""
