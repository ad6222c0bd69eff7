"""LoRA space: find, map and group LoRAs by their weights alone. The README has the data flow and the whole interface."""
