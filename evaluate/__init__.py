"""Maps against public data sets: `python -m intrinsic_lab.evaluate`."""
