"""Which seeds of `scenes` are for what: held-out scenes are never trained on by anything."""

HELD_OUT_SEEDS = range(0, 1000)
ADAPTER_SEEDS = range(1000, 100_000)
BASE_SEEDS = range(100_000, 1_000_000)
