"""Names of the kinds of scenes, for lists that offer them before anything is rendered."""

ROOM, WORLD = "room", "world"
# Rooms, and what `world.kinds` draws, in its order.
KINDS = (ROOM, "interior", "tabletop", "closeup", "clutter", "outdoor", "landscape")
