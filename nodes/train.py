"""Training from the graph: an Intrinsic LoRA, I-LDM's VAE and LoRA, LumiX's adapter."""

from collections.abc import Callable
from typing import Any

from comfy_api.latest import io, ui

# The trainers import diffusers, peft and accelerate: they are imported when a training starts.
from ..methods.ildm.intrinsic_vae import INTRINSICS
from ..methods.intrinsic_lora.multi_step import METHODS
from ..methods.intrinsic_lora.recipe import RAW, READINGS
from ..methods.lumix.design import ATTENTIONS, FUSED, QUERY_BROADCAST, SEPARATE, TENSOR, Design
from ..methods.maps import MAPS
from ..methods.maps.files import COLOR_FILES, DEPTH_FILES, NORMAL_FILES
from .native.backbones import families_for
from .native.backbones.backbone import INTRINSIC_LORA, JOINT_LORA, TENSOR_LORA
from .native.loading.intrinsic_vae import intrinsic_vae_folder, intrinsic_vae_folders
from .native.node import Node
from .native.paths import folder_fingerprint, model_folders
from .native.schema import schema
from .native.training.files import (
    SCENES,
    Destination,
    base_names,
    checkpoint_files,
    data_folders,
    intrinsic_vae_destination,
    is_finished,
    lora_destination,
    maps_in,
    name_problem,
    pair_folders,
    run_folder,
)
from .native.training.session import Settings, Trained, Trainer, train_in_graph

CATEGORY = "intrinsic lab/training"
FIRST_STEPS = 1000
ADAPTERS = ("attention", "transformer", "wide")
LORAS = (TENSOR, FUSED, SEPARATE)
LAYOUT = (
    "Rendered scenes with exact maps, or a folder in ComfyUI's input that holds pairs: image/NAME.png with MAP/NAME.png, or NAME.png with "
    "NAME_MAP.png. Other folders are not listed."
)


def _first_inputs(trainer: str, kinds: str, *own: io.Input, data: str = "") -> list[io.Input]:
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


def _run_inputs(name: str, paper: str, learning_rate: float, batch: int, *own: io.Input) -> list[io.Input]:
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


def _more_inputs(*own: io.Input, colors: bool = True) -> list[io.Input]:
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
        _choice("normals", tuple(NORMAL_FILES.readings), f"Of a folder's normals. {NORMAL_FILES.meanings}.", "normals in files"),
        _choice("depth", tuple(DEPTH_FILES.readings), f"Of a folder's depth pictures. {DEPTH_FILES.meanings}.", "depth in files"),
        _choice("mixed_precision", ("no", "bf16", "fp16"), "Number format of the passes. bf16 halves the memory on newer cards."),
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
        shared.insert(3, _choice("colors", tuple(COLOR_FILES.readings), tooltip, "colors in files"))
    return [*own, *shared]


def _choice(name: str, options: tuple[str, ...], tooltip: str, label: str | None = None) -> io.Combo.Input:
    """label: what the node shows where the name alone says too little."""
    return io.Combo.Input(
        name, display_name=label, options=list(options), default=options[0], optional=True, advanced=True, tooltip=tooltip
    )


def _rank(default: int) -> io.Int.Input:
    return io.Int.Input("rank", default=default, min=1, max=256, tooltip=f"Of the LoRA: how much it can learn. The paper's is {default}.")


def _checkpointing() -> io.Boolean.Input:
    return io.Boolean.Input(
        "gradient_checkpointing", default=False, optional=True, advanced=True, tooltip="Needs much less memory; a step takes longer."
    )


def _outputs(result: str, label: str, tooltip: str) -> list[io.Output]:
    return [
        io.AnyType.Output(result, display_name=label, tooltip=tooltip),
        io.Image.Output("LOSS_CURVE", display_name="loss_curve", tooltip="The loss of every step, on a logarithmic scale."),
        io.String.Output("REPORT", display_name="report", tooltip="What was written where, how long it took, how the loss fell."),
    ]


class _Training(Node):
    """What all training nodes share: when they run again, and how they answer."""

    destination: Callable[[str], Destination] = staticmethod(lora_destination)

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        """A linked name is checked when it is known."""
        return True if name is None else name_problem(name) or True

    @classmethod
    def fingerprint_inputs(
        cls, base: str | None = None, data: str | None = None, name: str | None = None, intrinsic_vae: str | None = None, **others
    ) -> tuple | float:
        """Changes with the base's and the data's files; a result that was deleted is made again."""
        if name is not None and name_problem(name) is None and is_finished(run_folder(name)) and not cls.destination(name).path.exists():
            return float("nan")
        chosen = ((model_folders() | checkpoint_files(), base), (data_folders(), data), (intrinsic_vae_folders(), intrinsic_vae))
        folders = (offered.get(choice) if choice else None for offered, choice in chosen)
        return tuple(folder and folder_fingerprint(folder) for folder in folders)

    @classmethod
    def train(cls, settings: Settings, trainer: Trainer) -> io.NodeOutput:
        """Runs the trainer and shows its loss curve, with a sample where the trainer gives one."""
        trained: Trained = train_in_graph(settings, cls.destination(settings.name), trainer)
        return io.NodeOutput(trained.name, trained.curve, trained.report, ui=ui.PreviewImage(trained.shown, cls=cls))


class TrainLoRA(_Training):
    """Pictures and one map -> an Intrinsic LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabTrainLoRA",
            display_name="Train Intrinsic LoRA",
            category=CATEGORY,
            description=(
                "Trains a LoRA with which a Stable Diffusion 1.x or 2.x, FLUX.1, SD 3, Qwen-Image or Z-Image model turns a picture into "
                "one of its maps, in one forward pass. "
                "Cancel keeps a checkpoint; queueing the same graph again goes on from it."
            ),
            search_aliases=["i-lora", "train lora", "training", "fine-tune", "normal map lora", "depth lora", "loss curve"],
            is_output_node=True,
            inputs=[
                *_first_inputs(
                    INTRINSIC_LORA,
                    "SD 1.x or 2.x, FLUX.1, SD 3, Qwen-Image, Z-Image",
                    io.Combo.Input("map", options=list(MAPS), tooltip="What the LoRA shall extract."),
                ),
                *_run_inputs("my_map", "the paper's 20,000 on 4,000 pictures take hours.", 1e-4, 4, _rank(8)),
                *_more_inputs(
                    _choice(
                        "kind",
                        ADAPTERS,
                        "Which layers learn. attention: the paper's; transformer: feed-forward too; wide: convolutions too, best for the "
                        "nano model.",
                        "layers that learn",
                    ),
                    _checkpointing(),
                ),
                _choice(
                    "method",
                    METHODS,
                    "single: one forward pass. multi: the model's own denoising, sampled from the picture. augmented: sampled with the "
                    "picture beside the noise (I-LoRA AUG). Many steps are for Extract Maps in Steps and Stable Diffusion 1.x, 2.x.",
                ),
                _choice(
                    "reading",
                    tuple(READINGS),
                    "How the one step's output says the map. raw: as it is. negative: with its sign changed. data: the picture less the "
                    "output, which a flow (FLUX, SD 3, Qwen-Image, Z-Image) takes for the data. The LoRA's header keeps it.",
                    "map read from the output",
                ),
            ],
            outputs=_outputs("LORA_NAME", "lora_name", "The LoRA's name: connect it to lora_name of Apply Intrinsic LoRA or Load LoRA."),
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        map: str,
        rank: int,
        kind: str = ADAPTERS[0],
        gradient_checkpointing: bool = False,
        method: str = METHODS[0],
        reading: str = RAW,
        **shared: Any,
    ) -> io.NodeOutput:
        def trainer(settings: Settings) -> tuple:
            from ..training.intrinsic_lora import IntrinsicLoraConfig, train_intrinsic_lora

            config = IntrinsicLoraConfig(
                settings.base_path,
                map,
                settings.loop(),
                settings.pairs(),
                kind,
                rank,
                settings.batch,
                gradient_checkpointing=gradient_checkpointing,
                method=method,
                reading=reading,
            )
            return config, lambda watcher: train_intrinsic_lora(
                config, report=watcher.step, on_encoded=watcher.encoded, on_sample=watcher.sampled
            )

        return cls.train(Settings(**shared), trainer)


def _joint_data(settings: Settings):
    """Pictures with all their intrinsics; of a folder, those that it holds."""
    from ..training.folder_data import FolderData
    from ..training.ildm import JointFolderData, JointSceneData

    pairs = settings.pairs()
    return JointFolderData(pairs, maps_in(pairs.folder, tuple(INTRINSICS))) if isinstance(pairs, FolderData) else JointSceneData(pairs)


JOINT_KINDS = "SD 1.x, 2.x, SDXL or PixArt-alpha"
JOINT_DATA = f" Maps: those of {', '.join(INTRINSICS)} that the folder holds."


class TrainIntrinsicVAE(_Training):
    """A base's VAE -> its intrinsic VAE."""

    destination = staticmethod(intrinsic_vae_destination)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabTrainIntrinsicVAE",
            display_name="Train Intrinsic VAE (I-LDM)",
            category=CATEGORY,
            description=(
                "Trains the VAE that puts depth, normals, segmentation and lines of a picture into one latent (I-LDM), from the base "
                "model's own VAE. Train Joint LoRA needs it. Cancel keeps a checkpoint; queueing the same graph again goes on from it."
            ),
            search_aliases=["i-ldm", "train vae", "training", "intrinsic autoencoder", "loss curve"],
            is_output_node=True,
            inputs=[
                *_first_inputs(JOINT_LORA, JOINT_KINDS, data=JOINT_DATA),
                *_run_inputs("my_intrinsic_vae", "good maps need 20,000 and more.", 1e-4, 4),
                *_more_inputs(colors=False),
            ],
            outputs=_outputs(
                "INTRINSIC_VAE_NAME",
                "intrinsic_vae",
                "The VAE's name: connect it to intrinsic_vae of Load Intrinsic VAE and of Train Joint LoRA.",
            ),
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, **shared: Any) -> io.NodeOutput:
        def trainer(settings: Settings) -> tuple:
            from ..training.ildm import IntrinsicVaeConfig, train_intrinsic_vae

            config = IntrinsicVaeConfig(settings.base_path, settings.loop(), _joint_data(settings), settings.batch)
            return config, lambda watcher: train_intrinsic_vae(config, report=watcher.step)

        return cls.train(Settings(**shared), trainer)


class TrainJointLoRA(_Training):
    """Pictures, captions and maps -> the LoRA of the intrinsic domain."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabTrainJointLoRA",
            display_name="Train Joint LoRA (I-LDM)",
            category=CATEGORY,
            description=(
                "Trains the LoRA with which a model generates depth, normals, segmentation and lines beside the picture (I-LDM). Cancel "
                "keeps a checkpoint; queueing the same graph again goes on from it."
            ),
            search_aliases=["i-ldm", "ildm", "train lora", "training", "joint generation", "loss curve"],
            is_output_node=True,
            inputs=[
                *_first_inputs(
                    JOINT_LORA,
                    JOINT_KINDS,
                    io.Combo.Input(
                        "intrinsic_vae",
                        options=list(intrinsic_vae_folders()),
                        tooltip="The intrinsic VAE that was made from this base: bundled, or from Train Intrinsic VAE.",
                    ),
                    data=f"{JOINT_DATA} Captions: NAME.txt beside the pictures.",
                ),
                *_run_inputs("my_joint_lora", "good maps need 20,000 and more.", 1e-4, 4, _rank(32)),
                *_more_inputs(_checkpointing(), colors=False),
            ],
            outputs=_outputs("LORA_NAME", "lora_name", "The LoRA's name: connect it to lora_name of Apply Cross-Domain Attention."),
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, intrinsic_vae: str, rank: int, gradient_checkpointing: bool = False, **shared: Any) -> io.NodeOutput:
        def trainer(settings: Settings) -> tuple:
            from ..training.ildm import JointConfig, train_joint_lora

            config = JointConfig(
                settings.base_path,
                intrinsic_vae_folder(intrinsic_vae),
                settings.loop(),
                _joint_data(settings),
                rank,
                settings.batch,
                gradient_checkpointing=gradient_checkpointing,
            )
            return config, lambda watcher: train_joint_lora(config, report=watcher.step, on_encoded=watcher.encoded)

        return cls.train(Settings(**shared), trainer)


class TrainTensorLoRA(_Training):
    """Pictures, captions and maps -> a LumiX adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabTrainTensorLoRA",
            display_name="Train Tensor LoRA (LumiX)",
            category=CATEGORY,
            description=(
                "Trains the adapter with which FLUX.1 samples albedo, irradiance, color, depth and normal of one scene together (LumiX). "
                "Cancel keeps a checkpoint; queueing the same graph again goes on from it."
            ),
            search_aliases=["lumix", "train lora", "training", "flux", "tensor lora", "loss curve"],
            is_output_node=True,
            inputs=[
                *_first_inputs(
                    TENSOR_LORA,
                    "FLUX.1",
                    data=" Maps: albedo, shading (irradiance), depth, normal; captions: NAME.txt beside the pictures.",
                ),
                *_run_inputs("my_lumix", "the paper's 10,000 with 16 pictures each take days.", 1e-4, 1, _rank(8)),
                *_more_inputs(
                    _choice(
                        "attention",
                        ATTENTIONS[::-1],
                        "How maps meet. query-broadcast is LumiX's. Apply Tensor LoRA reads it from the file.",
                    ),
                    _choice("lora", LORAS, "How the update across maps is built. tensor: LumiX's, shared cores.", "form of the LoRA"),
                    _choice(
                        "base_dtype",
                        ("float32", "bfloat16", "float16"),
                        "Of the frozen transformer, which halves its memory (FLUX.1-dev: 24 GB in bfloat16). Set mixed_precision too.",
                    ),
                    _checkpointing(),
                ),
            ],
            outputs=_outputs("LORA_NAME", "lora_name", "The adapter's name: connect it to lora_name of Apply Tensor LoRA."),
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        rank: int,
        attention: str = QUERY_BROADCAST,
        lora: str = TENSOR,
        base_dtype: str = "float32",
        gradient_checkpointing: bool = False,
        **shared: Any,
    ) -> io.NodeOutput:
        def trainer(settings: Settings) -> tuple:
            from ..training.lumix import LumixConfig, train_lumix

            if base_dtype != "float32" and settings.mixed_precision == "no":
                raise ValueError(f"base_dtype {base_dtype} works with mixed precision only: set mixed_precision to bf16 or fp16.")
            config = LumixConfig(
                settings.base_path,
                settings.loop(),
                settings.pairs(),
                Design(attention, lora),
                rank,
                batch=settings.batch,
                base_dtype=base_dtype,
                gradient_checkpointing=gradient_checkpointing,
            )
            return config, lambda watcher: train_lumix(config, report=watcher.step, on_encoded=watcher.encoded)

        return cls.train(Settings(**shared), trainer)


NODES = [TrainLoRA, TrainIntrinsicVAE, TrainJointLoRA, TrainTensorLoRA]
