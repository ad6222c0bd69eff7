"""The I-LDM trainers on tiny networks: joint attention against the float64 oracle, eq. 5, and what is written."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, PixArtTransformer2DModel, UNet2DConditionModel
from intrinsic_lab.methods.ildm.intrinsic_vae import TOTAL_CHANNELS, channel_slice
from intrinsic_lab.methods.lora.lora_file import read_lora
from intrinsic_lab.training.folder_data import FolderData
from intrinsic_lab.training.ildm import (
    IntrinsicVaeConfig,
    IntrinsicVaeTask,
    JointConfig,
    JointDenoiser,
    JointFolderData,
    JointSceneData,
    JointTask,
    TextEmbeddings,
    add_joint_adapter,
    train_intrinsic_vae,
    train_joint_lora,
)
from intrinsic_lab.training.ildm.__main__ import build_parser, config_from
from intrinsic_lab.training.ildm.autoencoder import widened_vae
from intrinsic_lab.training.ildm.run import JointLatents
from intrinsic_lab.training.intrinsic_lora.adapter import lora_layers
from intrinsic_lab.training.loop import LoopConfig, step_generator
from intrinsic_lab.training.pairs import SceneData
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "nodes"))
from ildm_oracle import Oracle

SCENES = JointSceneData(SceneData(count=6, size=32))


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unet(**options):
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=32,
        **options,
    )


def networks():
    torch.manual_seed(0)
    sdxl = dict(addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=16 + 48)
    return {
        "sd21": unet(attention_head_dim=(2, 4), use_linear_projection=True),
        "sdxl": unet(attention_head_dim=(2, 4), use_linear_projection=True, transformer_layers_per_block=(1, 2), **sdxl),
        "pixart": PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=24,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            cross_attention_dim=48,
            sample_size=16,
            caption_channels=32,
            use_additional_conditions=True,
        ),
    }


def text_of(family, rows):
    context = randn(1, 5, 32, seed=1).expand(rows, -1, -1)
    return TextEmbeddings(context, pooled=randn(1, 16, seed=2).expand(rows, -1) if family == "sdxl" else None)


def make_lora_matter(network):
    draw = torch.Generator().manual_seed(3)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=draw))


@pytest.mark.parametrize("family", ["sd21", "sdxl", "pixart"])
def test_the_training_forward_equals_equation_1_in_float64_and_only_the_lora_gets_gradients(family):
    network = networks()[family]
    plain = networks()[family]
    plain.load_state_dict(network.state_dict())
    add_joint_adapter(network, rank=4, seed=0)
    make_lora_matter(network)
    denoiser = JointDenoiser(network, size=64)
    noisy, timestep = randn(2, 4, 16, 8), torch.tensor([700, 700])
    output = denoiser(noisy, timestep, text_of(family, 2))
    lora = {name: (layer.down, layer.up, layer.scale) for name, layer in lora_layers(network).items()}
    oracle = Oracle(plain, lora, lambda index, stage, t: 1.0)
    extra = {
        "sd21": {},
        "sdxl": {"text_embeds": randn(1, 16, seed=2), "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])},
        "pixart": {"resolution": torch.tensor([[64.0, 64]]), "aspect_ratio": torch.ones(1, 1)},
    }[family]
    with torch.no_grad():
        wanted = oracle.forward(noisy.double(), 700.0, randn(1, 5, 32, seed=1), extra)
    assert oracle.calls == len(lora) // 4 > 0
    assert (output - wanted).abs().max() < 1e-4 * wanted.abs().max()
    output[:1].square().mean().backward()
    learning = {name for name, parameter in network.named_parameters() if parameter.grad is not None and parameter.grad.abs().sum() > 0}
    assert learning and all("lora_" in name and ".attn1." in name for name in learning)
    assert any("to_k" in name for name in learning), "the picture's own loss teaches the intrinsics' keys"


def joint_task(**options):
    network = networks()["sd21"]
    config = JointConfig(Path("base"), Path("vae"), LoopConfig(Path("out"), 1), rank=2, batch=3, empty_prompt=0.0, **options)
    add_joint_adapter(network, config.rank, 0, config.image_domain)
    make_lora_matter(network)
    scheduler = DDPMScheduler(prediction_type="v_prediction" if options.get("balance") == 2.0 else "epsilon")
    latents = JointLatents(*((randn(5, 4, 8, 8, seed=seed), torch.zeros(5, 4, 8, 8)) for seed in (4, 5)))
    text = TextEmbeddings(randn(6, 5, 32, seed=6))
    return JointTask(config, JointDenoiser(network, 64), scheduler, latents, text)


@pytest.mark.parametrize("balance", [0.5, 2.0])
def test_the_loss_is_equation_5_with_independent_noises_at_one_timestep(balance):
    task = joint_task(balance=balance)
    seen = {}

    def spy(module, args, output):
        seen.update(noisy=args[0], timestep=args[1], text=args[2], output=output)

    task.module.register_forward_hook(spy)
    loss = task.loss(task.module, step_generator(0, 0))
    t = seen["timestep"]
    assert torch.equal(t[:3], t[3:]) and torch.equal(seen["text"].context[:3], seen["text"].context[3:])
    signal = task.scheduler.alphas_cumprod[t].sqrt()[:, None, None, None]
    noise_scale = (1 - task.scheduler.alphas_cumprod[t]).sqrt()[:, None, None, None]

    # Every caption is another one, so the text tells which rows were drawn.
    rows = [int((task.text.context == text).flatten(1).all(1).nonzero()) for text in seen["text"].context[:3]]
    clean_x, clean_i = task.latents.image[0][rows], task.latents.intrinsic[0][rows]
    noise_x, noise_i = ((seen["noisy"] - signal * torch.cat([clean_x, clean_i])) / noise_scale).chunk(2)
    assert abs(noise_x.std() - 1) < 0.1 and abs(noise_i.std() - 1) < 0.1
    correlation = torch.corrcoef(torch.stack([noise_x.flatten(), noise_i.flatten()]))[0, 1]
    assert correlation.abs() < 0.2
    noise, clean = torch.cat([noise_x, noise_i]), torch.cat([clean_x, clean_i])
    target = noise if balance == 0.5 else signal * noise - noise_scale * clean
    error = (seen["output"] - target).square().flatten(1).mean(1)
    assert loss.item() == pytest.approx((error[:3].mean() + balance * error[3:].mean()).item(), rel=1e-4)


def test_without_the_image_domain_only_intrinsics_are_denoised():
    task = joint_task(image_domain=False)
    rows = []
    task.module.register_forward_hook(lambda module, args, output: rows.append(args[0].shape[0]))
    task.loss(task.module, step_generator(0, 0)).backward()
    assert rows == [3]


@pytest.fixture(scope="module")
def trained(tiny_base, tmp_path_factory):
    """The two commands in a row, a few steps each."""
    place = tmp_path_factory.mktemp("ildm")
    vae = IntrinsicVaeConfig(tiny_base, LoopConfig(place / "vae", 3, learning_rate=1e-3), SCENES, batch=2)
    train_intrinsic_vae(vae)
    lora = JointConfig(tiny_base, vae.weights, LoopConfig(place / "lora", 3, learning_rate=1e-2), SCENES, rank=4, batch=2)
    return vae, lora, train_joint_lora(lora)


def test_both_commands_write_what_the_nodes_read(trained, tiny_base):
    vae_config, lora_config, result = trained
    vae = AutoencoderKL.from_pretrained(vae_config.weights)
    assert vae.config.in_channels == vae.config.out_channels == TOTAL_CHANNELS
    lora = read_lora(result.weights)
    base = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    assert set(lora.layers) == {
        name for name, module in base.named_modules() if ".attn1.to_" in name and isinstance(module, torch.nn.Linear)
    }
    assert {layer.rank for layer in lora.layers.values()} == {4} and {layer.scale for layer in lora.layers.values()} == {1.0}
    assert any(layer.up.abs().sum() > 0 for layer in lora.layers.values()), "the LoRA learnt something"
    assert lora.metadata["intrinsic_lab.method"] == "i-ldm" and str(tiny_base.parent) not in "".join(lora.metadata.values())
    assert len(result.history.losses) == 3 and (lora_config.loop.output / "loss.png").is_file()
    assert len(train_joint_lora(lora_config).history.losses) == 3, "a finished run has nothing left to do"


def test_parts_that_do_not_belong_together_are_refused(trained, tiny_base, tmp_path):
    _, lora_config, _ = trained
    config = replace(lora_config, loop=replace(lora_config.loop, output=tmp_path))
    with pytest.raises(ValueError, match="holds no VAE"):
        train_joint_lora(replace(config, intrinsic_vae=tmp_path))
    with pytest.raises(ValueError, match="takes 3 channels"):
        train_joint_lora(replace(config, intrinsic_vae=tiny_base / "vae"))
    with pytest.raises(ValueError, match=r"model_index\.json"):
        train_joint_lora(replace(config, base=tmp_path))


def test_the_vae_task_hides_intrinsics_on_the_way_in_and_asks_for_them_back(tiny_base):
    config = IntrinsicVaeConfig(tiny_base, LoopConfig(Path("out"), 1), SCENES, batch=4, zero_mask=0.5)
    task = IntrinsicVaeTask(config, widened_vae(tiny_base), SCENES.source())
    seen = []
    task.module.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    first = task.loss(task.module, step_generator(0, 0))
    target = 2 * SCENES.source().read("intrinsics", torch.randint(6, (4,), generator=step_generator(0, 0)).tolist()) - 1
    hidden = [(seen[0][:, channel_slice(name)] == 0).flatten(1).all(1) for name in ("depth", "normal", "segmentation", "line")]
    hidden = torch.stack(hidden, 1)
    assert 0 < hidden.sum() < hidden.numel()
    for name, here in zip(("depth", "normal", "segmentation", "line"), hidden.T, strict=True):
        assert torch.equal(seen[0][~here, channel_slice(name)], target[~here, channel_slice(name)])
    optimizer = torch.optim.Adam(task.module.parameters(), 1e-3)
    for _ in range(8):
        optimizer.zero_grad()
        loss = task.loss(task.module, step_generator(0, 0))
        loss.backward()
        optimizer.step()
    assert loss < 0.9 * first


def test_a_second_stage_trains_the_decoder_alone_and_asks_for_lines(trained, tmp_path):
    first, _, _ = trained
    config = replace(first, loop=replace(first.loop, output=tmp_path, learning_rate=1e-2), decoder_of=first.weights, lines=8.0)
    before = AutoencoderKL.from_pretrained(first.weights).state_dict()
    after, _ = train_intrinsic_vae(config)
    changed = {name.split(".")[0] for name, weight in after.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {"decoder", "post_quant_conv"}, "latents stay valid"
    plain = IntrinsicVaeTask(replace(config, lines=0.0), after, SCENES.source())
    asked = IntrinsicVaeTask(config, after, SCENES.source())
    outputs = []
    asked.module.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
    added = asked.loss(asked.module, step_generator(0, 0)) - plain.loss(plain.module, step_generator(0, 0))
    target = 2 * SCENES.source().read("intrinsics", torch.randint(6, (2,), generator=step_generator(0, 0)).tolist()) - 1
    error = (outputs[0] - target)[:, channel_slice("line")].square().mean()
    assert added.item() == pytest.approx(8 * error.item(), rel=1e-4)


def write_folder(folder, names=("a", "b", "c")):
    draw = torch.Generator().manual_seed(0)
    for kind in ("image", "depth", "normal", "segmentation", "line"):
        (folder / kind).mkdir(parents=True)
        for name in names:
            pixels = (torch.rand(32, 40, 3, generator=draw) * 255).byte().numpy()
            Image.fromarray(pixels).save(folder / kind / f"{name}.png")
    (folder / "image" / "b.txt").write_text("a kitchen\n with a table\n")
    (folder / "line" / "c.png").unlink()


def test_a_folder_gives_pictures_that_have_every_map_with_their_captions(tmp_path):
    write_folder(tmp_path)
    source = JointFolderData(FolderData(tmp_path, size=32)).source()
    assert len(source) == 2 and source.captions == ("", "a kitchen with a table")
    values = source.read("intrinsics", [1]) * 2 - 1
    assert values.shape == (1, TOTAL_CHANNELS, 32, 32)
    normal = values[:, channel_slice("normal")]
    assert (normal.norm(dim=1) - 1).abs().max() < 1e-3
    without = JointFolderData(FolderData(tmp_path, size=32), ("depth", "normal")).source()
    assert len(without) == 3
    partial = without.read("intrinsics", [0, 1]) * 2 - 1
    assert partial[:, channel_slice("line")].count_nonzero() == 0 and torch.equal(partial[1:, channel_slice("normal")], normal)
    assert source.identity("image") != source.identity("intrinsics")
    with pytest.raises(ValueError, match="albedo"):
        JointFolderData(FolderData(tmp_path), ("albedo",))


def test_scenes_give_every_intrinsic():
    values = SCENES.source().read("intrinsics", [0, 3])
    assert values.shape == (2, TOTAL_CHANNELS, 32, 32) and values.min() >= 0 and values.max() <= 1
    assert set(values[:, channel_slice("line")].unique().tolist()) == {0.0, 1.0}
    assert all(SCENES.source().captions)


def test_the_command_line_makes_the_papers_settings():
    words = ["lora", "--base", "b", "--output", "o", "--intrinsic-vae", "v", "--data", "d", "--intrinsics", "depth", "line"]
    config = config_from(build_parser().parse_args(words))
    assert (config.rank, config.image_domain, config.data.intrinsics, config.data.size) == (32, True, ("depth", "line"), 512)
    vae = config_from(build_parser().parse_args(["vae", "--base", "b", "--output", "o", "--scenes", "7"]))
    assert (vae.zero_mask, len(vae.data.scenes), vae.weights) == (0.1, 7, Path("o/intrinsic_vae"))


@pytest.mark.parametrize("change", [{"rank": 0}, {"balance": -1.0}, {"empty_prompt": 2.0}, {"save_dtype": "int8"}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValueError):
        JointConfig(Path("b"), Path("v"), LoopConfig(Path("o"), 1), **change)
