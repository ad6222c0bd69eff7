"""The inputs and outputs that training nodes share."""

from comfy_api.latest import io

from ....methods.maps.files import COLOR_FILES, DEPTH_FILES, NORMAL_FILES
from ..backbones import families_for
from .files import SCENES, base_names, pair_folders

FIRST_STEPS = 1000
LAYOUT = (
    "Rendered scenes with exact maps, or a folder in ComfyUI's input that holds pairs: image/NAME.png with MAP/NAME.png, or NAME.png with "
    "NAME_MAP.png. Other folders are not listed."
)


def first_inputs(trainer: str, kinds: str, *own: io.Input, data: str = "") -> list[io.Input]:
    """What is trained, on what. trainer: of `backbone.TRAINERS`, whose families are offered."""
    return [
        io.Combo.Input(
            "base",
            options=base_names(*families_for(trainer)),
            tooltip=f"{kinds}: a diffusers-format folder in models/diffusers, the bundled nano model, or a file in models/checkpoints. "
            "It is not changed.",
        ),
        *own,
        io.Combo.Input("data", options=[SCENES, *pair_folders()], default=SCENES, tooltip=f"{LAYOUT}{data}"),
    ]


def run_inputs(name: str, paper: str, learning_rate: float, batch: int, *own: io.Input) -> list[io.Input]:
    """How long and under which name."""
    return [
        io.String.Input(
            "name",
            default=name,
            tooltip="Name of the run and of the file it makes. The same name and settings go on with that run; others need a new name.",
        ),
        io.Int.Input(
            "steps",
            default=FIRST_STEPS,
            min=1,
            max=1_000_000,
            tooltip=f"Of the optimiser, in all. {FIRST_STEPS} show whether it learns; {paper} Raise it and queue again to go on.",
        ),
        *own,
        io.Float.Input("learning_rate", default=learning_rate, min=1e-7, max=10.0, step=1e-7, tooltip="Of AdamW, constant."),
        io.Int.Input("batch", default=batch, min=1, max=256, tooltip="Pictures per step. Smaller needs less memory."),
        io.Int.Input(
            "size",
            default=0,
            min=0,
            max=2048,
            step=8,
            tooltip="Side in pixels of the square training pictures. 0: 128 for rendered scenes, 512 for a folder.",
        ),
        # Named `seed`, the front end would draw another one for every run, and no run could be continued.
        io.Int.Input("training_seed", default=0, min=0, max=2**31 - 1, tooltip="Of the data's order and of the first weights."),
    ]


def more_inputs(*own: io.Input, colors: bool = True) -> list[io.Input]:
    """What is seldom changed."""
    shared = [
        io.Int.Input(
            "scenes",
            default=1000,
            min=1,
            max=90_000,
            optional=True,
            advanced=True,
            tooltip="How many scenes are rendered. Not used with a folder.",
        ),
        choice("normals", tuple(NORMAL_FILES.readings), f"Of a folder's normals. {NORMAL_FILES.meanings}.", "normals in files"),
        choice("depth", tuple(DEPTH_FILES.readings), f"Of a folder's depth pictures. {DEPTH_FILES.meanings}.", "depth in files"),
        choice("mixed_precision", ("no", "bf16", "fp16"), "Number format of the passes. bf16 halves the memory on newer cards."),
        io.Int.Input(
            "checkpoint_every",
            default=200,
            min=1,
            max=100_000,
            optional=True,
            advanced=True,
            tooltip="Steps between checkpoints, from which a run goes on after a crash. Cancelling keeps one in any case.",
        ),
    ]
    if colors:
        tooltip = f"Of a folder's albedo, shading and specular pictures. {COLOR_FILES.meanings}."
        shared.insert(3, choice("colors", tuple(COLOR_FILES.readings), tooltip, "colors in files"))
    return [*own, *shared]


def choice(name: str, options: tuple[str, ...], tooltip: str, label: str | None = None) -> io.Combo.Input:
    """label: what the node shows where the name alone says too little."""
    return io.Combo.Input(
        name, display_name=label, options=list(options), default=options[0], optional=True, advanced=True, tooltip=tooltip
    )


def rank_input(default: int) -> io.Int.Input:
    return io.Int.Input("rank", default=default, min=1, max=256, tooltip=f"Of the LoRA: how much it can learn. The paper's is {default}.")


def checkpointing_input() -> io.Boolean.Input:
    return io.Boolean.Input(
        "gradient_checkpointing", default=False, optional=True, advanced=True, tooltip="Needs much less memory; a step takes longer."
    )


def outputs(result: str, label: str, tooltip: str) -> list[io.Output]:
    return [
        io.AnyType.Output(result, display_name=label, tooltip=tooltip),
        io.Image.Output("LOSS_CURVE", display_name="loss_curve", tooltip="The loss of every step, on a logarithmic scale."),
        io.String.Output("REPORT", display_name="report", tooltip="What was written where, how long it took, how the loss fell."),
    ]
