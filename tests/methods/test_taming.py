"""Published VQGANs: equal to the network written out in float64 over the published names, whatever else is in the file."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import VQModel
from intrinsic_lab.methods.intrinsic_lora.generators.taming import diffusers_weights, load_taming, settings_file

sys.path.insert(0, str(Path(__file__).parent))
from published_generators import FFHQ, TINY, TamingOracle, random_weights, taming_shapes


class ModelCheckpoint:
    """Stands for Lightning's class, which is a key in its checkpoints."""


def write(folder, params=TINY, prefix="", more=None, name="ffhq"):
    """A checkpoint of random weights with its yaml, as published; -> (path, weights)."""
    weights = random_weights(taming_shapes(params))
    state = {f"{prefix}{key}": tensor for key, tensor in weights.items()}
    state |= {"loss.discriminator.main.0.weight": torch.randn(4, 3, 4, 4), "transformer.head.weight": torch.randn(8, 8)}
    lightning = {
        "epoch": 3,
        "callbacks": {ModelCheckpoint: {"best": torch.tensor(1.0)}},
        "optimizer_states": [{"state": {0: torch.ones(3)}}],
    }
    torch.save({**lightning, "state_dict": state | (more or {})}, folder / f"{name}.ckpt")
    model = {"base_learning_rate": 4.5e-6, "target": "taming.models.vqgan.VQModel", "params": params}
    if prefix:
        model = {"target": "taming.models.cond_transformer.Net2NetTransformer", "params": {"first_stage_config": model}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"model": model, "data": {"target": "main.DataModuleFromConfig"}}))
    return folder / f"{name}.ckpt", weights


@pytest.mark.parametrize("attends", [[8], [16, 32], []])
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_published_vqgan_equals_its_network_written_out(prefix, attends, tmp_path):
    params = TINY | {"ddconfig": TINY["ddconfig"] | {"attn_resolutions": attends, "num_res_blocks": 1 + len(attends) % 2}}
    path, weights = write(tmp_path, params, prefix)
    vqgan = load_taming(path, VQModel.from_config)
    assert {weight.dtype for weight in vqgan.parameters()} == {torch.float32} and not any(p.requires_grad for p in vqgan.parameters())
    picture = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        found, wanted = vqgan.double()(picture.double()).sample, TamingOracle(params, weights)(picture)
    assert found.shape == wanted.shape == (2, 3, 32, 48)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("codes", [1024, 16384])
def test_the_published_networks_have_the_names_and_shapes_of_diffusers(codes):
    """FFHQ's f16 and the two of ImageNet, at their true size, without their numbers."""
    names = {name: torch.empty(shape, device="meta") for name, shape in taming_shapes(FFHQ | {"n_embed": codes}).items()}
    assert {
        "decoder.up.4.attn.2.proj_out.weight",
        "encoder.down.4.attn.1.q.bias",
        "encoder.down.2.block.0.nin_shortcut.weight",
    } < names.keys()
    with torch.device("meta"):
        vqgan = VQModel(
            down_block_types=("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
            up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 128, 256, 256, 512),
            layers_per_block=2,
            latent_channels=256,
            num_vq_embeddings=codes,
        )
    wanted = {name: weight.shape for name, weight in vqgan.state_dict().items()}
    assert {name: weight.shape for name, weight in diffusers_weights(names, 5).items()} == wanted


def test_a_published_download_is_found_in_its_own_folders(tmp_path):
    folder = tmp_path / "2021-04-23T18-19-01_ffhq_transformer"
    (folder / "checkpoints").mkdir(parents=True), (folder / "configs").mkdir()
    path, _ = write(folder / "checkpoints", name="last")
    assert settings_file(path).name == "last.yaml"
    path.with_suffix(".yaml").rename(folder / "configs/2021-04-23T18-19-01-project.yaml")
    (folder / "configs/2021-04-23T18-19-01-lightning.yaml").write_text("trainer: {}")
    assert settings_file(path).name == "2021-04-23T18-19-01-project.yaml"
    assert load_taming(path, VQModel.from_config).config.num_vq_embeddings == 24
    for file in (folder / "configs").iterdir():
        file.unlink()
    assert settings_file(path) is None
    with pytest.raises(ValueError, match=r"last\.ckpt has no last\.yaml beside it"):
        load_taming(path, VQModel.from_config)


def described(**changes):
    params = {**TINY, **{key: value for key, value in changes.items() if key in TINY}}
    params["ddconfig"] = {**TINY["ddconfig"], **{key: value for key, value in changes.items() if key not in TINY}}
    return {"model": {"target": "taming.models.vqgan.VQModel", "params": params}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("model: [", r"ffhq\.yaml is no readable YAML"),
        ("model: !!python/object/apply:os.system ['echo']", r"ffhq\.yaml is no readable YAML"),
        ("just text", "describes no model"),
        ({"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": {}}}, "describes ldm.models.diffusion"),
        ({"model": {"target": "taming.models.vqgan.GumbelVQ", "params": TINY}}, "describes taming.models.vqgan.GumbelVQ, taming"),
        ({"model": {"target": "taming.models.vqgan.VQModel"}}, "does not describe a whole VQGAN"),
        (described(ch="wide"), "ch is 'wide'; a whole number"),
        (described(ch=48), "ch is 48; multiples of 32"),
        (described(double_z=True), "double_z True"),
        (described(in_channels=182), "takes 182 channels"),
        (described(n_embed=0), "n_embed is 0"),
        (described(n_embed=25), r"quantize\.embedding\.weight is \[24, 6\], \[25, 6\] was expected: ffhq\.yaml describes another"),
        (described(num_res_blocks=2), r"lacks \d+ weights .*ffhq\.yaml describes another network"),
        (described(attn_resolutions=[32]), "or it is the checkpoint of another model"),
    ],
)
def test_a_wrong_yaml_is_told_in_words(content, words, tmp_path):
    path, _ = write(tmp_path)
    path.with_suffix(".yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(ValueError, match=words):
        load_taming(path, VQModel.from_config)


def test_a_checkpoint_of_another_model_is_told_in_words(tmp_path):
    path, weights = write(tmp_path)
    for content, words in (
        ({"model": weights}, "holds no 'state_dict'"),
        ({"state_dict": {"model.diffusion_model.out.2.bias": torch.zeros(3)}}, r"ffhq\.ckpt lacks \d+ weights"),
        ({"state_dict": weights | {"decoder.conv_out.bias": "text"}}, r"ffhq\.ckpt: str stands where a tensor was expected"),
        ({"state_dict": weights | {"decoder.conv_out.bias": torch.full((3,), torch.nan)}}, "is not finite floating point"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=words):
            load_taming(path, VQModel.from_config)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"ffhq\.ckpt is no whole pickle"):
        load_taming(path, VQModel.from_config)
