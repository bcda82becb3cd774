"""Makes the folders of images that everything else reads. Does not depend on models."""
