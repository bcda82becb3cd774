"""Makes the folders of images that everything else reads. Knows nothing of models."""
