"""Maps and domains sampled together, and the single step."""
