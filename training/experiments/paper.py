"""What the paper found, beside which ours are put.

"Intrinsic LoRA: A Generalist Approach for Discovering Knowledge in Generative Models": normals on real images of DIODE, by SD 1.5 (v1-1,
v1-2 and v1-5 for `bases`; SD 2.1 for steps and guidance): section 4.2 and figure 5 (control, bases), figure 8 (ranks), table 4 (labels),
appendix C.2 (layers), B.3 (steps), B.4 (guidance). Of the last three it shows pictures and says words.
"""

SOURCE = "the paper (normals, DIODE)"
# experiment -> (method, value) -> mean angle in degrees and L1 x 100 of normals.
NUMBERS: dict[str, dict[tuple[str, str], tuple[float, float]]] = {
    "control": {("", "trained"): (20.31, 16.53), ("", "random"): (36.18, 29.28)},
    "ranks": {
        ("", "2"): (22.28, 18.14),
        ("", "4"): (22.57, 18.39),
        ("", "8"): (20.31, 16.53),
        ("", "16"): (21.17, 17.19),
        ("", "32"): (21.84, 17.81),
    },
    "labels": {
        ("lora", "250"): (27.73, 22.46),
        ("lora", "1000"): (22.22, 18.05),
        ("lora", "4000"): (20.31, 16.53),
        ("lora", "16000"): (21.26, 17.33),
        ("probe", "250"): (29.10, 23.74),
        ("probe", "1000"): (28.45, 23.25),
        ("probe", "4000"): (28.52, 23.26),
        ("probe", "16000"): (28.22, 23.11),
        ("full", "250"): (34.40, 27.58),
        ("full", "1000"): (25.19, 20.28),
        ("full", "4000"): (28.03, 22.17),
        ("full", "16000"): (27.39, 22.24),
    },
    "layers": {("", "all"): (20.31, 16.53)},
}
ALONE = "less effective, or diverges"
WORDS: dict[str, dict[tuple[str, str], str]] = {
    "layers": {("", "up"): ALONE, ("", "mid"): ALONE, ("", "down"): ALONE, ("", "cross"): "decent", ("", "self"): "decent"},
}
# What it says of a whole experiment.
FINDINGS = {
    "control": "A random base does poorly: the knowledge is the base's, the LoRA alone has none.",
    "ranks": "Rank 8 is best; rank 2 still does well.",
    "labels": "LoRA is ahead of both others at every number of labels, most with few; 250 are enough for credible maps, 4000 for its best.",
    "layers": "Up-, mid- or down-blocks alone are less effective or diverge; self- or cross-attention alone is decent, both are best.",
    "bases": "The better a base makes pictures, the better its maps: SD 1.1 21.84, SD 1.2 21.41, SD 1.5 20.31 degrees.",
    "steps": "10 steps are enough; more change little.",
    "guidance": "3 is best and keeps the colours.",
}


def degrees(experiment: str, method: str, value: str) -> float | None:
    """The paper's mean angle of a row; None where it has none."""
    number = NUMBERS.get(experiment, {}).get((method, value))
    return None if number is None else number[0]


def said(experiment: str, method: str, value: str) -> str:
    """The paper's figures for a row, or its words; empty where it has none."""
    cell = method, value
    if number := NUMBERS.get(experiment, {}).get(cell):
        degrees, l1 = number
        return f"{degrees:.2f} degrees, L1 {l1:.2f}"
    return WORDS.get(experiment, {}).get(cell, "")
