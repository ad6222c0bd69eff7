"""The experiments of the Intrinsic LoRA paper, on anybody's base and data: `python -m intrinsic_lab.training.experiments`."""
