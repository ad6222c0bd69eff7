"""The LumiX trainer on a tiny FLUX.1: its forward against the float64 oracle, what learns, what each map sees, and what is written."""

import copy
import json
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from intrinsic_lab.methods.lumix.design import ATTENTIONS, COLOR, LORAS, MAP_NAMES, QUERY_BROADCAST, SEPARATE, TENSOR, Design
from intrinsic_lab.methods.lumix.tensor_lora.file import read_adapter
from intrinsic_lab.training.backbones.backbone import TextEmbeddings
from intrinsic_lab.training.backbones.flux import encode_texts, load_flux_base, predict_velocity
from intrinsic_lab.training.folder_data import FolderData
from intrinsic_lab.training.loop import Interrupted, LoopConfig, step_generator
from intrinsic_lab.training.lumix import LumixConfig, LumixTask, MapDenoiser, MapLatents, make_adapter, sample_maps, train_lumix
from intrinsic_lab.training.lumix.__main__ import build_parser, config_from, main
from intrinsic_lab.training.pairs import SceneData
from PIL import Image
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parents[1] / "nodes"))
from intrinsic_lab.tests.training.tiny_models import tiny_transformer
from lumix_oracle import FluxOracle, dense

SCENES = SceneData(count=4, size=32)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomised(adapter):
    draw = torch.Generator().manual_seed(1)
    for parameter in adapter.parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    return adapter


def adapter_for(transformer, design, rank=3):
    return make_adapter(transformer, design, rank, 2 if design.lora == "hybrid" else 0, seed=0)


def config_for(base, output, steps=3, **options):
    loop = LoopConfig(output, steps, learning_rate=options.pop("learning_rate", 1e-2), checkpoint_every=2)
    return LumixConfig(base, loop, SCENES, batch=2, rank=2, text_tokens=8, **options)


@pytest.mark.parametrize("attention, lora", list(product(ATTENTIONS, LORAS)))
def test_the_training_forward_equals_the_papers_equations_in_float64(attention, lora):
    design = Design(attention, lora, adapt_query=lora in (SEPARATE, TENSOR) and attention != SEPARATE)
    transformer = tiny_transformer(guidance_embeds=True)
    adapter = randomised(adapter_for(transformer, design))

    def deltas(kind, number, place):
        layer = getattr(getattr(adapter, f"{kind}_blocks")[number], place)
        return dense(layer.named_parameters(), lora, adapter.config.input_outputs if place == "input" else 1, 5, 16)

    oracle = FluxOracle(copy.deepcopy(transformer), attention, design.color_row, deltas)
    latents, times = randn(2, 5, 4, 4, 6), torch.rand(2, 5, generator=torch.Generator().manual_seed(2))
    text = TextEmbeddings(randn(2, 3, 64, seed=3), pooled=randn(2, 64, seed=4))
    with torch.no_grad():
        found = MapDenoiser(transformer, adapter, guidance=2.5)(latents, times, text)
        for group in range(2):
            parts = (latents[group], times[group], text.context[group : group + 1], text.pooled[group : group + 1])
            wanted = oracle.velocity(*(part.double() for part in parts), 2.5)
            assert (found[group] - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_fresh_adapter_with_separate_attention_is_the_base_itself(attention):
    transformer = tiny_transformer(guidance_embeds=True)
    latents, times = randn(1, 5, 4, 4, 4), torch.tensor([[0.1, 0.3, 0.5, 0.7, 0.9]])
    text = TextEmbeddings(randn(1, 3, 64), pooled=randn(1, 64))
    five = TextEmbeddings(text.context.expand(5, -1, -1), pooled=text.pooled.expand(5, -1))
    with torch.no_grad():
        plain = predict_velocity(transformer, latents[0], times[0], five, guidance=2.0)
        found = MapDenoiser(transformer, adapter_for(transformer, Design(attention)), guidance=2.0)(latents, times, text)[0]
    color = MAP_NAMES.index(COLOR)
    if attention == SEPARATE:
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)
    else:
        assert all((found[i] - plain[i]).norm() > 1e-3 * plain[i].norm() for i in range(5) if i != color)
    if attention == QUERY_BROADCAST:
        # Its own query is the one that all maps get: nothing changes for it.
        torch.testing.assert_close(found[color], plain[color], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("adapt_query", [False, True])
def test_the_query_projection_gets_no_gradient(adapt_query):
    transformer = tiny_transformer()
    before = copy.deepcopy(transformer.state_dict())
    denoiser = MapDenoiser(transformer, randomised(adapter_for(transformer, Design(adapt_query=adapt_query))))
    output = denoiser(randn(1, 5, 4, 4, 4), torch.rand(1, 5), TextEmbeddings(randn(1, 3, 64), pooled=randn(1, 64)))
    output.square().mean().backward()
    learning = {name for name, parameter in denoiser.named_parameters() if parameter.grad is not None}
    assert learning == {f"adapter.{name}" for name, _ in denoiser.adapter.named_parameters()}
    assert all(parameter.grad.count_nonzero() for parameter in denoiser.adapter.parameters())
    assert denoiser.adapter.double_blocks[0].input.G3.shape[1] == (3 if adapt_query else 2) * 16
    torch.optim.AdamW(denoiser.parameters(), 1.0).step()
    assert all(torch.equal(before[name], tensor) for name, tensor in transformer.state_dict().items())


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        transformer = tiny_transformer()
        denoiser = MapDenoiser(transformer, randomised(adapter_for(transformer, Design())))
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        denoiser(
            randn(1, 5, 4, 4, 4), torch.full((1, 5), 0.5), TextEmbeddings(randn(1, 3, 64), pooled=randn(1, 64))
        ).square().mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in denoiser.adapter.parameters()]))
    torch.testing.assert_close(*gradients)


class Recorder(torch.nn.Module):
    """Stands where the network is; keeps what it was given, answers with zeros."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, latents, times, text):
        self.latents, self.times, self.text = latents, times, text
        return latents * self.weight


def test_every_map_has_its_own_timestep_the_same_noise_and_given_maps_do_not_count(tmp_path):
    config = LumixConfig(tmp_path, LoopConfig(tmp_path, 1), SCENES, batch=64, empty_prompt=0.25, clean_share=0.3)
    clean, count = randn(5, 10, 4, 2, 2), 10
    network = Recorder()
    text = TextEmbeddings(torch.arange(count + 1.0)[:, None, None], pooled=torch.arange(count + 1.0)[:, None])
    task = LumixTask(config, network, MapLatents(clean, torch.zeros_like(clean)), text)
    task.module = network
    loss = task.loss(network, step_generator(0, 0))
    rows = network.text.pooled[:, 0].long()
    assert 4 < (rows == count).sum() < 32, "about a quarter of the prompts are left out"
    given = network.times == 0
    assert 0.2 < given.float().mean() < 0.4 and not given.all(1).any()
    errors = []
    for group in (rows < count).nonzero().flatten().tolist():
        own = clean[:, rows[group]]
        time = network.times[group, :, None, None, None]
        kept = given[group]
        assert torch.equal(network.latents[group][kept], own[kept])
        noise = ((network.latents[group] - (1 - time) * own) / time)[~kept]
        torch.testing.assert_close(noise, noise[:1].expand_as(noise), rtol=1e-2, atol=1e-3)
        assert len(network.times[group][~kept].unique()) == (~kept).sum()
        errors.append((noise - own[~kept]).square().mean((1, 2, 3)))
    # The groups without a prompt cannot be told apart here; they change the mean by chance only.
    assert loss.item() == pytest.approx(torch.cat(errors).mean().item(), rel=0.2)


def test_given_maps_come_back_exactly_and_the_others_follow_the_flow():
    design = Design()
    target = randn(2, 5, 4, 2, 2, seed=5)
    noise = randn(2, 4, 2, 2, seed=6)

    class Straight(torch.nn.Module):
        def forward(self, latents, times, text):
            self.times = times
            return (latents - target) / times.clamp(min=1e-6)[:, :, None, None, None]

    network = Straight()
    text = TextEmbeddings(torch.zeros(2, 1, 1), pooled=torch.zeros(2, 1))
    given = {COLOR: randn(2, 4, 2, 2, seed=7), "depth": randn(2, 4, 2, 2, seed=8)}
    found = sample_maps(network, design, noise, text, torch.tensor([1.0, 0.7, 0.2, 0.0]), given=given)
    for i, name in enumerate(design.maps):
        if name in given:
            assert torch.equal(found[:, i], given[name]) and (network.times[:, i] == 0).all()
        else:
            torch.testing.assert_close(found[:, i], target[:, i])
    with pytest.raises(ValueError, match="empty prompt"):
        sample_maps(network, design, noise, text, torch.tensor([1.0, 0.0]), cfg=3.0)


@pytest.mark.parametrize("optimizer, learning_rate", [("adamw", 1e-2), ("prodigy", 1.0)])
def test_a_stopped_run_resumes_to_the_same_file_in_the_published_format(flux_base, tmp_path, optimizer, learning_rate):
    options = dict(steps=4, optimizer=optimizer, learning_rate=learning_rate, save_dtype="float16")
    through = train_lumix(config_for(flux_base, tmp_path / "through", **options), cache=tmp_path)

    def stop_at_two(step, loss, seconds_left):
        if step == 2:
            raise Interrupted

    config = config_for(flux_base, tmp_path / "halves", **options)
    with pytest.raises(Interrupted):
        train_lumix(config, cache=tmp_path, report=stop_at_two)
    halves = train_lumix(config, cache=tmp_path)
    assert halves.history.losses == through.history.losses and len(through.history.losses) == 4
    with safe_open(through.weights, "pt") as one, safe_open(halves.weights, "pt") as other:
        assert set(one.keys()) == {
            f"{part}_blocks.0.processor.{place}_tt_lora.{core}"
            for part, place, core in product(("double", "single"), ("kv", "proj"), ("G1", "G2", "G3"))
        }
        assert all(torch.equal(one.get_tensor(key), other.get_tensor(key)) for key in set(one.keys()))
        assert one.get_tensor("double_blocks.0.processor.kv_tt_lora.G2").shape == (5, 16, 2, 2)
        header = one.metadata()
    settings = json.loads(header["intrinsic_lab.config"])
    assert settings["optimizer"] == optimizer and settings["base"] == "flux" and str(tmp_path) not in json.dumps(header)
    read = read_adapter(through.weights)
    assert read.config.design == Design() and read.double_blocks[0].input.G3.count_nonzero()
    if optimizer == "adamw":
        with pytest.raises(ValueError, match=r"clean_share was 0\.0, now 0\.5"):
            train_lumix(replace(config, clean_share=0.5), cache=tmp_path)


def test_latents_are_in_the_models_scale_and_texts_are_the_encoders_own(flux_base, tmp_path):
    base = load_flux_base(flux_base)
    source = SCENES
    latents = MapLatents.encode(base.vae, source, MAP_NAMES, tmp_path)
    with torch.no_grad():
        wanted = (base.vae.encode(2 * source.read("shading", [2]) - 1).latent_dist.mode() - 0.25) * 0.5
    torch.testing.assert_close(latents.mean[1, 2:3], wanted, rtol=1e-4, atol=1e-5)
    texts = ["a red ball on a gray floor", ""]
    found = encode_texts(flux_base, texts, tokens=512)
    pipeline = FluxPipeline.from_pretrained(flux_base)
    context, pooled, _ = pipeline.encode_prompt(texts, None, max_sequence_length=48)
    torch.testing.assert_close(found.context, context)
    torch.testing.assert_close(found.pooled, pooled)


def write_folder(folder):
    for kind in ("image", "albedo", "shading", "depth", "normal"):
        (folder / kind).mkdir(parents=True)
        for number in range(3 if kind == "image" else 2):
            Image.new("RGB", (32, 32), (40 * number + 60, 90, 200)).save(folder / kind / f"{number}.png")
    (folder / "image/1.txt").write_text("a blue box\n")
    return folder


def test_the_command_trains_from_a_folder_in_another_design(flux_base, tmp_path, capsys):
    folder = write_folder(tmp_path / "pictures")
    options = "--steps 1 --rank 2 --attention cross-intrinsic --lora hybrid --batch 1 --size 16 --text-tokens 8 --gradient-checkpointing"
    command = ["--base", str(flux_base), "--data", str(folder), "--output", str(tmp_path / "out"), *options.split()]
    config = config_from(build_parser().parse_args(command))
    assert config.data == FolderData(folder, 16) and config.other_rank == 1 and config.loop.learning_rate == 1e-4
    assert main(command) == 0
    adapter = read_adapter(tmp_path / "out/lumix.safetensors")
    assert adapter.config.design == Design("cross-intrinsic", "hybrid") and adapter.config.other_rank == 1


def test_what_does_not_fit_is_said(flux_base, tmp_path, caplog):
    out = ["--output", str(tmp_path / "out"), "--scenes", "2"]
    assert main(["--base", str(tmp_path), *out]) == 2
    assert "has no transformer folder" in caplog.text
    assert main(["--base", str(flux_base), *out, "--size", "30"]) == 2
    assert "needs a multiple of 4" in caplog.text
    assert main(["--base", str(flux_base), *out, "--other-rank", "2"]) == 2
    assert "hybrid" in caplog.text
