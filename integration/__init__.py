"""Label Studio data in and out, free of torch: label config, images, regions, polygons, annotations."""
