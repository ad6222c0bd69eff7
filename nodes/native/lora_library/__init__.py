"""Collections of LoRAs as the nodes see them."""
