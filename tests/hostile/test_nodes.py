"""What comes over a link or out of a workflow that is not what a node asks for, cancels in the middle, and two copies of the pack."""

import asyncio
import importlib.util
import logging
import math
import sys
from types import SimpleNamespace

import comfy.model_management
import folder_paths
import pytest
import torch
from comfy_api.latest import io
from intrinsic_lab.nodes import IntrinsicLabExtension
from intrinsic_lab.nodes.extract import ApplyIntrinsicLoRA, ExtractIntrinsicMaps
from intrinsic_lab.nodes.lora_space import BlendLoRAs
from intrinsic_lab.nodes.native import vaes
from intrinsic_lab.nodes.native.loading.diffusers_folder import load_pipeline
from intrinsic_lab.nodes.native.node import Node
from intrinsic_lab.nodes.native.paths import BUNDLED
from intrinsic_lab.nodes.native.schema import schema
from intrinsic_lab.tools.comfyui_source import ROOT
from safetensors.torch import save_file

NODES = asyncio.run(IntrinsicLabExtension().get_node_list())
PLAIN = {
    "INT": 1,
    "FLOAT": 1.0,
    "STRING": "x",
    "COLOR": "#ffffff",
    "COMBO": "x",
    "BOOLEAN": False,
    "IMAGE": torch.zeros(1, 8, 8, 3),
    "MASK": torch.zeros(1, 8, 8),
    "SIGMAS": torch.zeros(2),
    "LATENT": {"samples": torch.zeros(1, 4, 8, 8)},
    "CONDITIONING": [],
}
WRONG = ("a text", 3, math.nan, math.inf, [], ["1", 0], {"samples": 3}, torch.zeros(2))


def fits(kind: str, value) -> bool:
    """Whether a node cannot know that this is wrong: containers of other packs, and numbers for numbers."""
    own = {"INT": int, "FLOAT": int, "BOOLEAN": int, "STRING": str, "COLOR": str, "COMBO": str, "CONDITIONING": list}
    if kind in ("IMAGE", "MASK", "SIGMAS"):
        return isinstance(value, torch.Tensor)
    if kind in own:
        return isinstance(value, own[kind])
    return kind == "*" or (kind not in ("LATENT", "MODEL", "CLIP", "VAE") and not isinstance(value, str | int))


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_every_input_of_a_wrong_kind_is_refused_by_name_before_the_node_works(node, outcomes):
    assert issubclass(node, Node), "derive it from nodes.native.node.Node, which checks this"
    declared = node.GET_SCHEMA()
    fitting = {entry.id: PLAIN.get(entry.get_io_type().split(",")[0], object()) for entry in declared.inputs}
    listed = declared.is_input_list
    for entry in declared.inputs:
        kind = entry.get_io_type()
        for wrong in WRONG:
            if not isinstance(wrong, float) and (any(fits(one, wrong) for one in kind.split(",")) or kind.startswith("COMFY_")):
                continue
            if entry.rawLink and isinstance(wrong, list) and len(wrong) == 2:
                # It asks for the link itself.
                continue
            given = {**fitting, entry.id: wrong}
            with pytest.raises(ValueError, match=f"^{entry.id} (is|came as) "):
                node.execute(**({name: [value] for name, value in given.items()} if listed else given))
            outcomes["refused by name"] += 1


class Odd(Node):
    """Gives NaN, or raises what names a file."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="IntrinsicLabOdd",
            display_name="Be Odd",
            category="test",
            inputs=[io.String.Input("path")],
            outputs=[io.Image.Output("depth"), io.Latent.Output("latent")],
        )

    @classmethod
    def execute(cls, path: str):
        if path:
            raise FileNotFoundError(2, f"{path} is not there", path)
        return io.NodeOutput(torch.tensor([0.0, math.nan, math.inf]), {"samples": torch.ones(2)})


def test_results_that_are_no_numbers_are_told_of_once_and_messages_show_no_path_of_the_server(caplog):
    clone = Odd.PREPARE_CLASS_CLONE(None)
    with caplog.at_level(logging.WARNING):
        clone.execute("")
    [told] = [record.message for record in caplog.records if "NaN" in record.message]
    assert "depth holds 2 of 3 values" in told
    for root, shown in ((folder_paths.get_input_directory(), "input/a.png"), (str(BUNDLED), "assets/a.png")):
        with pytest.raises(FileNotFoundError) as error:
            Odd.execute(f"{root}/a.png")
        assert shown in str(error.value) and root not in str(error.value)


@pytest.fixture(scope="module")
def nano():
    return load_pipeline(BUNDLED / "nano")


@torch.inference_mode()
def test_a_cancel_ends_the_vae_and_the_network_where_they_are(nano):
    def cancel(*_):
        comfy.model_management.interrupt_current_processing(True)

    carrying = ApplyIntrinsicLoRA.execute(nano.model, "nano/depth (bundled)", "auto", 1.0).args[0]
    network, first_stage = carrying.model.diffusion_model, nano.vae.first_stage_model
    extract = {"processing_resolution": 64, "tile_size": 0, "tile_overlap": 0, "mirrored_average": False, "merged_map": "none"}
    runs = (
        (first_stage.encoder.conv_in, first_stage.encoder.mid, lambda: vaes.encode(nano.vae, torch.rand(1, 64, 64, 3))),
        (first_stage.decoder.conv_in, first_stage.decoder.norm_out, lambda: vaes.decode(nano.vae, torch.randn(1, 16, 16, 16))),
        (
            network.time_embed,
            network.out,
            lambda: ExtractIntrinsicMaps.execute(carrying, nano.clip, nano.vae, torch.rand(1, 64, 64, 3), **extract),
        ),
    )
    for begins, ends, run in runs:
        reached = []
        hooks = [begins.register_forward_hook(cancel), ends.register_forward_hook(lambda *_, seen=reached: seen.append(1))]
        try:
            with pytest.raises(comfy.model_management.InterruptProcessingException):
                run()
        finally:
            for hook in hooks:
                hook.remove()
            comfy.model_management.interrupt_current_processing(False)
        assert not reached
    assert not any(part._forward_pre_hooks for module in (network, first_stage) for part in module.modules())
    image = torch.rand(1, 2, 600, 3)
    outputs = ExtractIntrinsicMaps.execute(carrying, nano.clip, nano.vae, image, **{**extract, "processing_resolution": 0}).args
    assert outputs[1].shape == (1, 2, 600, 3) and outputs[1].isfinite().all()


def test_parts_of_other_families_meet_in_words(nano, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="decodes latents of 16 channels, these have 4"):
        vaes.decode(nano.vae, torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match="There is no VAE: the checkpoint"):
        ExtractIntrinsicMaps.execute(nano.model, nano.clip, None, torch.rand(1, 8, 8, 3), 64, 0, 0, False, "none")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], folder_paths.supported_pt_extensions))
    key = "lora_unet_double_blocks_77_img_attn_qkv"
    save_file({f"{key}.lora_down.weight": torch.ones(1, 8), f"{key}.lora_up.weight": torch.ones(8, 1)}, tmp_path / "flux.safetensors")
    save_file({"lora_unet_conv_in.lora_up.weight": torch.ones(8, 1, 1, 1)}, tmp_path / "half.safetensors")
    empty = {"alpha": torch.ones(0), "lora_down.weight": torch.ones(1, 4, 3, 3), "lora_up.weight": torch.ones(8, 1, 1, 1)}
    save_file({f"lora_unet_conv_in.{name}": value for name, value in empty.items()}, tmp_path / "empty.safetensors")
    for name in ("half.safetensors", "empty.safetensors"):
        with pytest.raises(ValueError, match=f"{name} is no whole LoRA"):
            BlendLoRAs.execute([nano.model], [name], [1.0])
    (tmp_path / "a.bin").write_bytes(b"\x80")
    with pytest.raises(ValueError, match="fits no layer of this MODEL"):
        BlendLoRAs.execute([nano.model], ["flux.safetensors"], [1.0])
    with pytest.raises(FileNotFoundError, match=r"a\.bin is a pickle: convert"):
        BlendLoRAs.execute([nano.model], ["a.bin"], [1.0])
    monkeypatch.setattr("intrinsic_lab.nodes.native.lora_library.files.TORCH", (2, 5))
    with pytest.raises(ValueError, match=r"a\.bin is a pickle"):
        ApplyIntrinsicLoRA.execute(nano.model, "a.bin", "depth", 1.0)


def test_a_second_copy_of_the_pack_stands_aside_and_names_both_folders(monkeypatch, caplog):
    spec = importlib.util.spec_from_file_location("second_copy", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    monkeypatch.setitem(sys.modules, "second_copy", importlib.util.module_from_spec(spec))
    second = importlib.import_module("second_copy.nodes").IntrinsicLabExtension
    taken = {node.GET_SCHEMA().node_id: node for node in NODES}
    monkeypatch.setitem(sys.modules, "nodes", SimpleNamespace(NODE_CLASS_MAPPINGS=taken))
    with caplog.at_level(logging.WARNING):
        assert asyncio.run(second().get_node_list()) == []
    assert [f"{ROOT} is used, {ROOT} is left alone" in record.message for record in caplog.records] == [True]
    assert len(asyncio.run(IntrinsicLabExtension().get_node_list())) == len(NODES)
    for name in [name for name in sys.modules if name.startswith("second_copy.")]:
        del sys.modules[name]
