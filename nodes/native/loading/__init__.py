"""A model folder on disk as native MODEL, CLIP and VAE."""
