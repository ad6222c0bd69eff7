"""Path-traced scenes with exact maps: a check of realism apart from `scenes.rendering`, and training folders from .blend files."""
