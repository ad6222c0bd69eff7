"""A tiny random Stable Diffusion in both worlds, native and diffusers + peft, for the tests of Apply and Extract."""

from types import SimpleNamespace

import diffusers
import folder_paths
import peft
import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from intrinsic_lab.methods.lora.layers import LoraLayer
from intrinsic_lab.methods.lora.lora_file import kohya_state_dict
from intrinsic_lab.methods.maps import MAPS
from intrinsic_lab.nodes.extract import ApplyIntrinsicLoRA, ExtractIntrinsicMaps
from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPTextModel

FOUR_MAPS = ("normal", "depth", "albedo", "shading")
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def both_worlds(folder):
    """The same random weights in diffusers and natively."""
    native = load_pipeline(folder, dtype=torch.float32, text_dtype=torch.float32)
    return SimpleNamespace(
        folder=folder,
        model=native.model,
        clip=native.clip,
        native_vae=native.vae,
        vae=diffusers.AutoencoderKL.from_pretrained(folder / "vae").eval(),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder").eval(),
    )


@pytest.fixture(scope="module")
def tiny(sd15_folder):
    return both_worlds(sd15_folder)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    (tmp_path / "loras").mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], {".safetensors", ".bin"}))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    torch.manual_seed(0)
    with torch.inference_mode():
        yield tmp_path / "loras"


def peft_unet(tiny, targets, seed, rank=3):
    """A diffusers UNet with a random LoRA, and that LoRA in kohya's spelling (alpha = 2 x rank, so the scale is 2)."""
    torch.manual_seed(seed)
    with torch.inference_mode(False):
        unet = diffusers.UNet2DConditionModel.from_pretrained(tiny.folder / "unet").eval()
        if targets == "all":
            targets = [name for name, module in unet.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))]
        unet.add_adapter(peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, init_lora_weights=False))
    weights = get_peft_model_state_dict(unet)
    names = {key.rsplit(".lora_", 1)[0] for key in weights}
    layers = {name: LoraLayer(weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"], scale=2.0) for name in names}
    return unet, kohya_state_dict(layers)


def embed(tiny, prompt):
    [chunk] = tiny.clip.tokenize(prompt)["l"]
    tokens = [token for token, _ in chunk]
    return tiny.text_encoder(torch.tensor([tokens])).last_hidden_state


def to_model(tiny, latent):
    """A VAE's latent in the model's own scale."""
    return (latent - (tiny.vae.config.shift_factor or 0)) * tiny.vae.config.scaling_factor


def reference(tiny, unet, image, map_name, prompt=None, timestep=999):
    """The published recipe in diffusers: VAE mode, t = 999, no noise; the scaled latent and the picture of the map."""
    latent = to_model(tiny, tiny.vae.encode(image.movedim(-1, 1) * 2 - 1).latent_dist.mode())
    context = embed(tiny, prompt or MAPS[map_name].prompt).expand(image.shape[0], -1, -1)
    output = unet(latent, torch.tensor([timestep]), context).sample
    config = tiny.vae.config
    return output, tiny.vae.decode(output / config.scaling_factor + (config.shift_factor or 0)).sample.movedim(1, -1) / 2 + 0.5


def maps_of(output) -> dict:
    """The node's outputs by the name of their map: the latent stands between the first four and those that came later."""
    of_maps = [*output.args[:4], *output.args[5:]]
    return dict(zip(MAPS, of_maps, strict=True))


def error(tiny, output, unet, image, map_name, prompt=None, timestep=999):
    """Largest difference of the map's scaled latent from the reference's; the decoded map is compared on the way.

    The decoder's random weights magnify the latents' float32 rounding about tenfold, so its own bound is 5e-4. Normals are compared before
    normalisation, which would magnify further where they are short.
    """
    of_maps = maps_of(output)
    names = [name for name, values in of_maps.items() if not isinstance(values, ExecutionBlocker)]
    latent, picture = reference(tiny, unet, image, map_name, prompt, timestep)
    values, wanted = of_maps[map_name], MAPS[map_name].from_picture(picture)
    if map_name == "normal":
        length = (picture * 2 - 1).norm(dim=-1, keepdim=True)
        values, wanted = values * length, wanted * length
    assert values.shape[:3] == image.shape[:3]
    same_map = (values - wanted).abs().max() < 5e-4
    row = names.index(map_name) * image.shape[0]
    difference = (to_model(tiny, output[4]["samples"][row : row + image.shape[0]]) - latent).abs().max()
    assert same_map or difference > 1e-4, "equal latents were decoded to different maps"
    return difference


def save_lora(folder, map_name, state, **header):
    save_file(
        state,
        folder / f"{map_name}.safetensors",
        metadata={"intrinsic_lab.map": map_name} | {f"intrinsic_lab.{k}": v for k, v in header.items()},
    )


def apply(model, lora_name, map_name="auto", strength=1.0):
    return ApplyIntrinsicLoRA.execute(model, f"{lora_name}.safetensors", map_name, strength)[0]


def extract(tiny, model, image, **settings):
    defaults = dict(processing_resolution=0, tile_size=0, tile_overlap=64, mirrored_average=False, merged_map="none")
    return ExtractIntrinsicMaps.execute(model, tiny.clip, tiny.native_vae, image, **(defaults | settings))


def hooks_left(model):
    return sum(len(module._forward_hooks) for module in model.model.diffusion_model.modules())


@pytest.fixture
def normal_model(tiny, folders):
    _, state = peft_unet(tiny, ATTENTION, seed=0)
    save_lora(folders, "normal", state)
    return apply(tiny.model, "normal")
