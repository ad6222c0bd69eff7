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
from .native.backbones.backbone import INTRINSIC_LORA, JOINT_LORA, TENSOR_LORA
from .native.loading.intrinsic_vae import intrinsic_vae_folder, intrinsic_vae_folders
from .native.node import Node
from .native.paths import folder_fingerprint, model_folders
from .native.schema import schema
from .native.training.files import (
    Destination,
    checkpoint_files,
    data_folders,
    intrinsic_vae_destination,
    is_finished,
    lora_destination,
    maps_in,
    name_problem,
    run_folder,
)
from .native.training.inputs import checkpointing_input, choice, first_inputs, more_inputs, outputs, rank_input, run_inputs
from .native.training.session import Settings, Trained, Trainer, train_in_graph

CATEGORY = "intrinsic lab/training"
ADAPTERS = ("attention", "transformer", "wide")
LORAS = (TENSOR, FUSED, SEPARATE)


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
        """Runs the trainer and shows its loss curve, with a sample of what it has learnt."""
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
                "Trains a LoRA with which a Stable Diffusion 1.x or 2.x, FLUX.1, FLUX.2 klein, SD 3, Qwen-Image, Z-Image or Lumina 2 model "
                "turns a picture into one of its maps, in one forward pass. "
                "Cancel keeps a checkpoint; queueing the same graph again goes on from it."
            ),
            search_aliases=["i-lora", "train lora", "training", "fine-tune", "normal map lora", "depth lora", "loss curve"],
            is_output_node=True,
            inputs=[
                *first_inputs(
                    INTRINSIC_LORA,
                    "SD 1.x or 2.x, FLUX.1, FLUX.2 klein, SD 3, Qwen-Image, Z-Image, Lumina 2",
                    io.Combo.Input("map", options=list(MAPS), tooltip="What the LoRA shall extract."),
                ),
                *run_inputs("my_map", "the paper's 20,000 on 4,000 pictures take hours.", 1e-4, 4, rank_input(8)),
                *more_inputs(
                    choice(
                        "kind",
                        ADAPTERS,
                        "Which layers learn. attention: the paper's; transformer: feed-forward too; wide: convolutions too, best for the "
                        "nano model.",
                        "layers that learn",
                    ),
                    checkpointing_input(),
                ),
                choice(
                    "method",
                    METHODS,
                    "single: one forward pass. multi: the model's own denoising, sampled from the picture. augmented: sampled with the "
                    "picture beside the noise (I-LoRA AUG). Many steps are for Extract Maps in Steps and Stable Diffusion 1.x, 2.x.",
                ),
                choice(
                    "reading",
                    tuple(READINGS),
                    "How the one step's output says the map. raw: as it is. negative: with its sign changed. data: the picture less the "
                    "output, which a flow (FLUX, SD 3, Qwen-Image, Z-Image) takes for the data. The LoRA's header keeps it.",
                    "map read from the output",
                ),
            ],
            outputs=outputs("LORA_NAME", "lora_name", "The LoRA's name: connect it to lora_name of Apply Intrinsic LoRA or Load LoRA."),
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
                *first_inputs(JOINT_LORA, JOINT_KINDS, data=JOINT_DATA),
                *run_inputs("my_intrinsic_vae", "good maps need 20,000 and more.", 1e-4, 4),
                *more_inputs(colors=False),
            ],
            outputs=outputs(
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
            return config, lambda watcher: train_intrinsic_vae(config, report=watcher.step, on_sample=watcher.sampled)

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
                *first_inputs(
                    JOINT_LORA,
                    JOINT_KINDS,
                    io.Combo.Input(
                        "intrinsic_vae",
                        options=list(intrinsic_vae_folders()),
                        tooltip="The intrinsic VAE that was made from this base: bundled, or from Train Intrinsic VAE.",
                    ),
                    data=f"{JOINT_DATA} Captions: NAME.txt beside the pictures.",
                ),
                *run_inputs("my_joint_lora", "good maps need 20,000 and more.", 1e-4, 4, rank_input(32)),
                *more_inputs(checkpointing_input(), colors=False),
            ],
            outputs=outputs("LORA_NAME", "lora_name", "The LoRA's name: connect it to lora_name of Apply Cross-Domain Attention."),
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
            return config, lambda watcher: train_joint_lora(
                config, report=watcher.step, on_encoded=watcher.encoded, on_sample=watcher.sampled
            )

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
                *first_inputs(
                    TENSOR_LORA,
                    "FLUX.1",
                    data=" Maps: albedo, shading (irradiance), depth, normal; captions: NAME.txt beside the pictures.",
                ),
                *run_inputs("my_lumix", "the paper's 10,000 with 16 pictures each take days.", 1e-4, 1, rank_input(8)),
                *more_inputs(
                    choice(
                        "attention",
                        ATTENTIONS[::-1],
                        "How maps meet. query-broadcast is LumiX's. Apply Tensor LoRA reads it from the file.",
                    ),
                    choice("lora", LORAS, "How the update across maps is built. tensor: LumiX's, shared cores.", "form of the LoRA"),
                    choice(
                        "base_dtype",
                        ("float32", "bfloat16", "float16"),
                        "Of the frozen transformer, which halves its memory (FLUX.1-dev: 24 GB in bfloat16). Set mixed_precision too.",
                    ),
                    checkpointing_input(),
                ),
            ],
            outputs=outputs("LORA_NAME", "lora_name", "The adapter's name: connect it to lora_name of Apply Tensor LoRA."),
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
            return config, lambda watcher: train_lumix(config, report=watcher.step, on_encoded=watcher.encoded, on_sample=watcher.sampled)

        return cls.train(Settings(**shared), trainer)


NODES = [TrainLoRA, TrainIntrinsicVAE, TrainJointLoRA, TrainTensorLoRA]
