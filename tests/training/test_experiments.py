"""The paper's experiments as one command, tiny: which runs they make, resuming, what is refused; layers and linear probe of the trainer."""

import json
import re
import signal
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy
import pytest
import torch
from intrinsic_lab.evaluate.run import EvaluationConfig, evaluate
from intrinsic_lab.methods.lora.lora_file import read_lora
from intrinsic_lab.methods.maps import MAPS
from intrinsic_lab.scenes import render_scenes
from intrinsic_lab.tests.data import tiny_sets
from intrinsic_lab.tests.training.test_intrinsic_lora import SCENES, config_of, noise
from intrinsic_lab.training.experiments import paper
from intrinsic_lab.training.experiments.__main__ import build_parser, experiment_from, main
from intrinsic_lab.training.experiments.experiments import EXPERIMENTS
from intrinsic_lab.training.experiments.plot import Curve, Panel, draw
from intrinsic_lab.training.experiments.report import spread
from intrinsic_lab.training.intrinsic_lora import (
    LatentPairs,
    add_adapter,
    load_adapter,
    load_base,
    lora_layers,
    noise_for,
    predict_maps_in_steps,
    train_intrinsic_lora,
)
from intrinsic_lab.training.intrinsic_lora.probe import load_probe
from intrinsic_lab.training.intrinsic_lora.run import IntrinsicLoraTask
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "experiments"
TINY = "--map normal --steps 3 --batch 2 --learning-rate 1e-2 --rank 4 --scenes 8 --size 32 --judged 3 --seeds 2 --threads 1 --log-every 1"
SPLIT = "--values 4 8 --methods lora probe"


@pytest.fixture(scope="module")
def pairs(tiny_base):
    return LatentPairs.encode(load_base(tiny_base).vae, SCENES, "normal")


def trainable(network) -> int:
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def experiment(name: str, base: Path, output: Path, options: str = "", common: str = TINY) -> list[str]:
    return [name, "--base", str(base), "--output", str(output), *common.split(), *options.split()]


def test_each_part_trains_as_many_parameters_as_are_counted_by_hand(tiny_base):
    """Widths of the tiny UNet's transformers: 32 below, 64 in the middle, twice 32 above; text of 32; eight projections in each."""
    rank = 3
    # Rank times inputs and outputs: four projections of self-attention; two of cross-attention read the text.
    of_self = {width: 4 * rank * 2 * width for width in (32, 64)}
    of_cross = {width: 2 * rank * 2 * width + 2 * rank * (32 + width) for width in (32, 64)}
    places = {"down": (32,), "mid": (64,), "up": (32, 32)}
    wanted = {part: sum(of_self[width] + of_cross[width] for width in widths) for part, widths in places.items()}
    every = [width for widths in places.values() for width in widths]
    wanted |= {"self": sum(of_self[width] for width in every), "cross": sum(of_cross[width] for width in every)}
    wanted["all"] = wanted["self"] + wanted["cross"]
    for layers, count in wanted.items():
        unet = load_base(tiny_base).network
        add_adapter(unet, "attention", rank, 0, layers)
        assert trainable(unet) == count, layers
    unet = load_base(tiny_base).network
    above = sum(parameter.numel() for parameter in unet.up_blocks.parameters())
    add_adapter(unet, "full", 1, 0, "up")
    assert trainable(unet) == above
    unet = load_base(tiny_base).network
    add_adapter(unet, "probe", 1, 0)
    assert trainable(unet) == sum(every) * 4 + 4
    with pytest.raises(ValueError, match="layers is 'left': choose all, up, mid, down, self, cross"):
        add_adapter(unet, "attention", 1, 0, "left")


def test_a_confined_lora_loads_in_core_with_the_output_of_the_trainer(tiny_base, pairs, tmp_path, monkeypatch):
    pytest.importorskip("comfy.sd")
    import folder_paths
    from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline

    from nodes import LoraLoader

    trained = train_intrinsic_lora(config_of(tiny_base, tmp_path, layers="up"), pairs=pairs)
    assert {name.split(".")[0] for name in lora_layers(trained.base.network)} == {"up_blocks"}
    inputs = noise(2, 4, 8, 8), torch.tensor([999, 999]), noise(2, 77, 32)
    native = load_pipeline(tiny_base, dtype=torch.float32)
    plain = native.model.model.diffusion_model(inputs[0], inputs[1], context=inputs[2])
    endings = folder_paths.folder_names_and_paths["loras"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], endings))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    model, _ = LoraLoader().load_lora(native.model, native.clip, trained.weights.name, 1.0, 0.0)
    assert len(model.patches) == 2 * 8
    model.patch_model()
    output = model.model.diffusion_model(inputs[0], inputs[1], context=inputs[2])
    model.unpatch_model()
    torch.testing.assert_close(output, trained.base.network(*inputs).sample, rtol=0, atol=1e-4)
    assert (output - plain).abs().max() > 0.01


def test_a_linear_probe_is_one_linear_map_of_the_frozen_features(tiny_base, pairs, tmp_path):
    config = config_of(tiny_base, tmp_path, steps=40, kind="probe", loop={"learning_rate": 3e-2})
    trained = train_intrinsic_lora(config, pairs=pairs)
    losses = trained.history.losses
    assert sum(losses[-8:]) < 0.95 * sum(losses[:8])
    unet = trained.base.network
    frozen = load_base(tiny_base).network
    assert all(torch.equal(value, unet.state_dict()[name]) for name, value in frozen.state_dict().items() if "conv_out" not in name)

    # Of a size whose halves are rounded up, written out: features brought to the latent's size, then one matrix.
    inputs = noise(2, 4, 7, 6), 999, noise(2, 77, 32)
    heard, sizes = [], {42: (7, 6), 12: (4, 3)}
    for name, module in frozen.named_modules():
        if name.endswith("attn1"):
            module.register_forward_hook(lambda module, inputs, tokens: heard.append(tokens.double()))
    with torch.no_grad():
        frozen(*inputs)
        grids = [tokens.movedim(1, 2).reshape(2, -1, *sizes[tokens.shape[1]]) for tokens in heard]
        features = torch.cat([functional.interpolate(grid, (7, 6), mode="bilinear") for grid in grids], 1)
        probe = unet.conv_out
        # The probe counts attentions by their place in the network, above before the middle.
        order = [name for name, _ in frozen.named_modules() if name.endswith("attn1")]
        run = sorted(range(4), key=lambda place: ("down", "mid_", "up_b").index(order[place][:4]))
        matrix = torch.cat([probe.readouts[place].weight.double() for place in run], 1)
        wanted = torch.einsum("oc,bchw->bohw", matrix, features) + probe.bias.double()[:, None, None]
        output = unet(*inputs).sample
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(output.double(), wanted, rtol=0, atol=1e-4)

    again = load_base(tiny_base).network
    load_probe(again, trained.weights)
    torch.testing.assert_close(again(*inputs).sample, output, rtol=0, atol=1e-5)
    wider = load_base(tiny_base).network
    wider.up_blocks[1].attentions[0].transformer_blocks[0].attn1.to_out[0].out_features = 48
    with pytest.raises(ValueError, match=r"normal_probe\.safetensors is no linear probe of this base"):
        load_probe(wider, trained.weights)
    with pytest.raises(ValueError, match="a linear probe, which reads every self-attention"):
        config_of(tiny_base, tmp_path, kind="probe", layers="up")


def test_a_selection_of_encoded_pairs_is_learnt_as_if_it_were_all_there_is(tiny_base, pairs, tmp_path):
    base, few = load_base(tiny_base), replace(SCENES, count=5)
    text, config = base.embed("surface normal"), config_of(tiny_base, tmp_path, data=few)
    own = IntrinsicLoraTask(config, base.network, base.vae, text, LatentPairs.encode(base.vae, few, "normal"))
    chosen = IntrinsicLoraTask(config, base.network, base.vae, text, pairs.chosen(range(5)))
    losses = [task.loss(base.network, torch.Generator().manual_seed(3)).item() for task in (own, chosen)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_killed_experiment_goes_on_and_ends_with_the_table_of_a_whole_one(tiny_base, tmp_path, start_trainer, caplog, capsys):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(experiment("labels", tiny_base, whole, SPLIT)) == 0
    record = json.loads((whole / "labels.json").read_text())
    assert [(row["method"], row["value"], [run["seed"] for run in row["runs"]]) for row in record["rows"]] == [
        (method, value, [0, 1]) for method in ("lora", "probe") for value in ("4", "8")
    ]
    assert capsys.readouterr().out.strip() == (whole / "labels.md").read_text().strip()
    # One table row against numpy: mean and sample deviation over the seeds.
    (row,) = re.findall(r"^\| 8 \| linear probe \| 2 \| ([\d.]+) ± ([\d.]+) \|", (whole / "labels.md").read_text(), re.M)
    degrees = [run["scores"]["mean_degrees"] for run in record["rows"][3]["runs"]]
    assert [float(text) for text in row] == pytest.approx([numpy.mean(degrees), numpy.std(degrees, ddof=1)], rel=0.05)
    assert len(set(degrees)) == 2
    # All runs share the latents of the largest number of labels: pictures and maps, each encoded once.
    assert len(list((whole / "latents").iterdir())) == 2
    assert (whole / "labels.png").read_bytes()[:4] == b"\x89PNG"

    process = start_trainer(tiny_base, killed, f"{TINY} {SPLIT}", module="training.experiments labels")
    for line in process.stdout:
        if "run 3 of 8" in line:
            process.send_signal(signal.SIGKILL)
            break
    process.wait(30)
    kept = {path: path.stat().st_mtime_ns for path in killed.rglob("judged-*.json")}
    assert len(kept) == 2
    caplog.set_level("INFO")
    assert main(experiment("labels", tiny_base, killed, SPLIT)) == 0
    assert [int(number) for number in re.findall(r"run (\d) of 8", caplog.text)] == [3, 4, 5, 6, 7, 8]
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())

    def scores(folder: Path) -> list:
        return [[run["scores"] for run in row["runs"]] for row in json.loads((folder / "labels.json").read_text())["rows"]]

    assert scores(killed) == scores(whole)

    # Another experiment of the same folder takes over what it shares: rank 4 on 8 scenes is trained.
    caplog.clear()
    assert main(experiment("ranks", tiny_base, killed, "--values 4 2", TINY.replace("--rank 4", ""))) == 0
    assert re.findall(r"run (\d) of 4", caplog.text) == ["2", "4"]
    table = (killed / "ranks.md").read_text()
    assert "22.57 degrees, L1 18.39" in table and "2,496" not in table.split("| 4 |")[0]
    assert re.search(r"^\| 4 \|.*\| 9,984 \|", table, re.M), "rank 4 trains 4 x 2,496 parameters"


def test_a_run_is_judged_as_evaluate_judges_its_file(tiny_base, tmp_path):
    """Masked pixels, another size and shape than that of training, the LoRA merged instead of beside."""
    for split, pictures in (("train", 3), ("val", 2)):
        tiny_sets.write_diode(tmp_path / "diode", pictures, split, shape=(32, 40))
    for path in (tmp_path / "diode" / "train").rglob("*_normal.npy"):
        # No latent counts if any of its pixels is unknown.
        numpy.save(path, tiny_sets.unit_vectors(tiny_sets.numbers(), (32, 40)))
    options = f"--data diode:{tmp_path / 'diode'} --split train --judge diode:{tmp_path / 'diode'} --values 2"
    common = "--map normal --steps 2 --batch 1 --learning-rate 1e-2 --rank 2 --size 16 --seeds 1 --threads 1"
    assert main(experiment("labels", tiny_base, tmp_path / "out", f"{options} --methods lora", common)) == 0
    (row,) = json.loads((tmp_path / "out" / "labels.json").read_text())["rows"]
    (lora,) = (tmp_path / "out" / "runs").glob("*/normal.safetensors")
    assert all(layer.up.abs().max() > 0 for layer in read_lora(lora).layers.values())
    judged = evaluate(EvaluationConfig("diode", tmp_path / "diode", "normal", tmp_path / "judged", base=tiny_base, lora=lora))
    assert len(judged) == 2
    for metric, value in row["runs"][0]["scores"].items():
        assert value == pytest.approx(fmean(score[metric] for score in judged.values()), rel=1e-3, abs=1e-3), metric


def test_steps_and_guidance_judge_one_training_as_diffusers_samples_it(tiny_base, tmp_path, caplog):
    caplog.set_level("INFO")
    options = ["--method", "augmented", "--seeds", "1", "--judged", "2", "--values"]
    assert main([*experiment("steps", tiny_base, tmp_path), *options, "1", "3"]) == 0
    assert main([*experiment("guidance", tiny_base, tmp_path), *options, "1", "3"]) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 1
    # In three steps at the usual guidance: sampled from the file that was written, with the published recipe's helper.
    (row,) = [row for row in json.loads((tmp_path / "steps.json").read_text())["rows"] if row["value"] == "3"]
    (lora,) = (tmp_path / "runs").glob("*/normal.safetensors")
    base = load_base(tiny_base)
    add_adapter(base.network, "attention", 4, 0)
    load_adapter(base.network, read_lora(lora))
    scenes = render_scenes([0, 1], 32, 32)
    pictures = scenes.image_bhwc.movedim(-1, 1)
    maps = predict_maps_in_steps(base, noise_for(tiny_base, "augmented"), pictures, "normal", steps=3, guidance=3.0, rescale=0.7)
    degrees = MAPS["normal"].evaluation.score(maps, scenes.normal_bhwc)["mean_degrees"]
    assert row["runs"][0]["scores"]["mean_degrees"] == pytest.approx(degrees, rel=1e-3)
    tables = [json.loads((tmp_path / f"{name}.json").read_text())["rows"] for name in ("steps", "guidance")]
    assert len({row["runs"][0]["scores"]["mean_degrees"] for rows in tables for row in rows}) == 4
    # The file alone, merged into the base, in place of a training.
    given = ["--method", "augmented", "--lora", str(lora), "--seeds", "1", "--judged", "2", "--values", "3"]
    assert main([*experiment("steps", tiny_base, tmp_path / "given"), *given]) == 0
    (again,) = json.loads((tmp_path / "given" / "steps.json").read_text())["rows"]
    assert again["runs"][0]["scores"]["mean_degrees"] == pytest.approx(degrees, rel=1e-3)
    assert again["runs"][0]["parameters"] == row["runs"][0]["parameters"]
    assert not list((tmp_path / "given").rglob("*.pt")) and not (tmp_path / "given" / "latents").exists()
    assert main([*experiment("steps", tiny_base, tmp_path / "given"), *given, "--map", "depth"]) == 2
    assert "normal.safetensors makes normal by the method augmented: ask for these" in caplog.text


def test_a_run_that_diverges_is_kept_as_such(tiny_base, tmp_path, caplog):
    options = ["--values", "trained", "--seeds", "1", "--learning-rate", "1e30", "--steps", "6"]
    assert main([*experiment("control", tiny_base, tmp_path), *options]) == 0
    assert re.search(r"^\| trained \| 0, 1 diverged \|", (tmp_path / "control.md").read_text(), re.M)
    assert "the loss became" in json.loads((tmp_path / "control.json").read_text())["rows"][0]["runs"][0]["diverged"]
    caplog.set_level("INFO")
    assert main([*experiment("control", tiny_base, tmp_path), *options]) == 0
    assert "run 1 of 1" not in caplog.text


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("ranks", "--values 4 zero", "the rank is 'zero': a whole number of at least 1 is wanted"),
        ("layers", "--values left", "layers is 'left': choose all, up, mid"),
        ("control", "--values perfect", "init is 'perfect': choose trained, random"),
        ("bases", "", "one base came, bases compares several"),
        ("ranks", "--rank 5", "--rank is what ranks varies: say its places with --values"),
        ("ranks", "--minutes 1", "leave the limit of minutes out"),
        ("ranks", "--kind full", "the kind 'full' has no LoRA, which ranks is about"),
        ("ranks", "--methods lora", "ranks does not compare methods"),
        ("ranks", "--seeds 0", "0 seeds were asked for"),
        ("steps", "", "steps is about multi-step models: choose the method multi or augmented"),
        ("guidance", "--method multi --values strong", "the guidance is 'strong': a number is wanted"),
        ("control", "--judged 5000", "5000 scenes were asked for to judge on"),
        ("labels", "--data diode:{diode} --values 3", "3 labels were asked for, there are 2 pairs"),
        ("control", "--data diode:{diode} --judge diode:{diode}", "2 pictures of .* would be learnt from and judged on"),
        ("control", "--data diode:{diode} --judge iiw:{diode}", "iiw holds judgements and no maps"),
        ("control", "--data {diode}", "say with --judge NAME:FOLDER on which pictures"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(tiny_base, tmp_path, caplog, name, options, said):
    tiny_sets.write_diode(tmp_path / "diode")
    common = "--map normal --steps 2 --size 8 --threads 1" + (" --judge diode:{diode} --split val" if "--values 3" in options else "")
    line = experiment(name, tiny_base, tmp_path / "out", options, common)
    assert main([part.format(diode=tmp_path / "diode") for part in line]) == 2
    assert re.search(said, caplog.text), caplog.text
    assert not (tmp_path / "out").exists()


def test_a_base_that_is_none_is_refused_beside_one_that_is(tiny_base, tmp_path, caplog):
    line = ["bases", "--base", str(tmp_path / "none"), str(tiny_base), "--output", str(tmp_path / "out"), *TINY.split()]
    assert main(line) == 2 and "has no unet or transformer folder" in caplog.text and not (tmp_path / "out").exists()


def test_the_paper_says_something_of_every_experiment_and_only_of_places_that_there_are():
    assert paper.FINDINGS.keys() == EXPERIMENTS.keys()
    for name, numbers in (*paper.NUMBERS.items(), *paper.WORDS.items()):
        assert {value for _, value in numbers} <= set(EXPERIMENTS[name].values), name


def test_a_plot_shows_dots_where_the_values_are():
    curve = Curve("here", {0: (1.0,), 1: (3.0, 3.0)})
    picture = numpy.asarray(draw([Panel("title", "axis", ("a", "b"), (curve,))])).astype(int)
    # Blue where a dot is: left and low, right and high, of a diagram without anything else in blue but the line.
    blue = picture[70:320, 60:540, 2] - picture[70:320, 60:540, 0] > 100
    rows, columns = blue.nonzero()
    assert rows[columns < columns.min() + 3].mean() > 200 and rows[columns > columns.max() - 3].mean() < 40


def test_the_tables_of_the_records_say_what_the_records_say():
    names = [path.stem for path in RESULTS.glob("*.md")]
    assert names and set(names) <= EXPERIMENTS.keys()
    for name in names:
        table, record = ((RESULTS / f"{name}.{ending}").read_text() for ending in ("md", "json"))
        for row in json.loads(record)["rows"]:
            assert f"| {spread([run['scores']['mean_degrees'] for run in row['runs']])} |" in table, name
        assert "/" not in record, f"{name} names a folder"


def test_scenes_of_the_experiments_are_those_of_the_trainer(tiny_base, tmp_path):
    config = experiment_from(build_parser().parse_args(experiment("control", tiny_base, tmp_path)))
    (picture, reference), *_ = config.judged.pictures("normal")
    assert torch.equal(reference.values_hwc, render_scenes([0], 32, 32).normal_bhwc[0]) and picture.shape == (32, 32, 3)
