"""From an image to objects: prediction, prompts, tiles, masks that agree with each other, precision."""
