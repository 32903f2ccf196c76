"""Masks from prompts: boxes, clicks and earlier masks. One prompt is one view of fixed size around the object."""
