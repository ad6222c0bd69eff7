"""LoRA files of every kind: read safely, named the same whatever the spelling, their change of the weights."""
