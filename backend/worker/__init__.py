"""One worker: batches from the queue, images, network, outlines, stored predictions."""
