"""Scenes beyond rooms: one plan of parts, materials, lights and a camera per seed, rendered a few scenes at a time."""
