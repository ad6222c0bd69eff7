"""Low-rank updates that act on all maps of a picture at once: configuration, layers and file format (LumiX, section 3.3)."""
