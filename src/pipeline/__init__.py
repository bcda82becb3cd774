"""From folders of images to a trained, tested and explained model."""
