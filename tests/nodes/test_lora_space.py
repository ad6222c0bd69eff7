"""Nodes that find LoRAs by their weights, inside ComfyUI, on files whose kinship is known."""

import asyncio
import json
import threading
from pathlib import Path

import comfy.lora
import comfy.model_management
import folder_paths
import pytest
import torch
from intrinsic_lab.nodes import convert_lora, lora_map, lora_space
from intrinsic_lab.nodes.native.lora_library import lora_collection
from PIL import Image
from safetensors.torch import load_file, save_file

MODULES = ("attn1_to_q", "attn2_to_k", "ff_net_2")
PREFIX = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_"
WIDTHS = {"attn1_to_q": 40, "attn2_to_k": 768, "ff_net_2": 80}
STYLES, COPIES, RANK = ("anime", "oil paint", "photo"), 3, 3


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write_lora(path: Path, style: int, seed: int, width: int = 768) -> Path:
    """A LoRA whose change is its style's, plus a fifth of its own."""
    state = {}
    for place, module in enumerate(MODULES):
        columns = width if module == "attn2_to_k" else WIDTHS[module]
        up = randn(40, RANK, seed=100 * style + place) + 0.2 * randn(40, RANK, seed=1000 + 100 * seed + place)
        down = randn(RANK, columns, seed=100 * style + 50 + place) + 0.2 * randn(RANK, columns, seed=1050 + 100 * seed + place)
        state |= {f"{PREFIX}{module}.lora_up.weight": up, f"{PREFIX}{module}.lora_down.weight": down}
        state[f"{PREFIX}{module}.alpha"] = torch.tensor(float(RANK))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def shelf_folder(tmp_path_factory) -> Path:
    """models/loras: three styles of three LoRAs each, one of another base, one broken file, a preview picture."""
    folder = tmp_path_factory.mktemp("loras")
    for number, style in enumerate(STYLES):
        for copy in range(COPIES):
            write_lora(folder / style / f"{style[0]}{copy}.safetensors", number, 10 * number + copy)
    write_lora(folder / "xl.safetensors", 9, 99, width=2048)
    (folder / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    Image.new("RGB", (300, 200), (200, 30, 40)).save(folder / "anime" / "a1.preview.png")
    return folder


@pytest.fixture(autouse=True)
def comfyui_folders(shelf_folder, tmp_path_factory, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(shelf_folder)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("loras", None)
    user = tmp_path_factory.mktemp("user")
    monkeypatch.setattr(folder_paths, "user_directory", str(user))
    monkeypatch.setattr(folder_paths, "temp_directory", str(user / "temp"))
    yield
    folder_paths.filename_list_cache.pop("loras", None)


def indexed(family=lora_space.ANY, folder="", collection=lora_collection.LORAS):
    return lora_space.IndexLoRAs.execute(collection, family, folder)


def similar(query, k=2, index=None, **options):
    return lora_space.FindSimilarLoRAs.execute(index or indexed()[0], query, k, options.pop("subnetwork", "all"), **options)


def test_the_neighbours_are_the_other_loras_of_the_style_under_loraloaders_own_names():
    offered = folder_paths.get_filename_list("loras")
    for style in STYLES:
        output = similar(f"{style}/{style[0]}0.safetensors")
        name, names, scores, table, text = output.args
        assert sorted(names) == [f"{style}/{style[0]}1.safetensors", f"{style}/{style[0]}2.safetensors"] and name == names[0]
        assert set(names) <= set(offered) and scores == sorted(scores, reverse=True) and scores[0] > 0.8
        assert [found["name"] for found in json.loads(text)] == names
        assert table.shape[0] == 1 and table.shape[3] == 3 and table.min() >= 0 and table.max() <= 1


def test_scores_are_cosines_of_the_changes_of_weights(shelf_folder):
    def change(name):
        state = load_file(shelf_folder / name)
        products = [state[f"{PREFIX}{m}.lora_up.weight"].double() @ state[f"{PREFIX}{m}.lora_down.weight"].double() for m in MODULES]
        return torch.cat([product.flatten() for product in products])

    _, names, scores, _, _ = similar("anime/a0.safetensors", k=8).args
    query = change("anime/a0.safetensors")
    expected = [torch.cosine_similarity(query, change(name), dim=0).item() for name in names]
    assert len(names) == 8 and scores == pytest.approx(expected, abs=1e-5)


def test_several_queries_search_their_middle_and_unlike_takes_away():
    both = similar("anime/a0.safetensors", k=4, also_like="photo/p0.safetensors\n").args[1]
    assert {name.split("/")[0] for name in both} == {"anime", "photo"}
    away = similar("anime/a0.safetensors", k=9, unlike="photo/p1.safetensors | photo/p0.safetensors").args
    assert away[1][-1] == "photo/p2.safetensors" and away[2][-1] < 0 and not {"photo/p0.safetensors", "photo/p1.safetensors"} & set(away[1])


def test_a_folder_and_a_family_narrow_the_index():
    index, text = indexed(folder="oil paint").args
    assert "3 LoRAs are in this index" in text
    assert all(name.startswith("oil paint/") for name in similar("anime/a0.safetensors", k=9, index=index).args[1])
    assert all(name.startswith("photo/") for name in similar("anime/a0.safetensors", k=9, folder="photo/").args[1])
    with pytest.raises(ValueError, match="below 'nowhere'"):
        similar("anime/a0.safetensors", folder="nowhere")
    assert "1 LoRAs are in this index" in indexed(family="sdxl")[1]
    with pytest.raises(ValueError, match="base models found: sd1 9, sdxl 1"):
        indexed(family="flux1")


def test_the_family_may_be_any_that_the_index_holds_and_the_beginning_of_several(tmp_path, monkeypatch):
    names = {"small": 1536, "large": 5120, "large too": 5120}
    for name, width in names.items():
        key = "lora_unet_blocks_0_self_attn_q"
        state = {f"{key}.lora_down.weight": torch.randn(2, width), f"{key}.lora_up.weight": torch.randn(width, 2)}
        save_file(state, tmp_path / f"{name}.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))

    def offered():
        return next(one for one in lora_space.IndexLoRAs.define_schema().inputs if one.id == "family").options

    assert offered() == [lora_space.ANY, *lora_space.FAMILIES]
    index, text = indexed(family="wan").args
    assert index.family == "wan-14b" and "2 LoRAs are in this index" in text
    assert offered() == [lora_space.ANY, *lora_space.FAMILIES, "wan-14b", "wan-1.3b"]


def test_a_broken_file_is_told_by_its_name_and_nothing_tells_where_the_folder_lies(shelf_folder):
    text = indexed()[1]
    assert "11 LoRA files" in text and "broken.safetensors: " in text and str(shelf_folder) not in text


def test_the_index_runs_again_only_when_a_file_has_changed(shelf_folder):
    before = lora_space.IndexLoRAs.fingerprint_inputs(lora_collection.LORAS)
    assert lora_space.IndexLoRAs.fingerprint_inputs(lora_collection.LORAS) == before
    added = write_lora(shelf_folder / "new.safetensors", 0, 77)
    try:
        assert lora_space.IndexLoRAs.fingerprint_inputs(lora_collection.LORAS) != before
    finally:
        added.unlink()


def test_the_neighbours_may_be_looked_up_in_a_server_that_whoever_starts_comfyui_names(tmp_path, monkeypatch, caplog):
    pgserver = pytest.importorskip("pgserver")
    from intrinsic_lab.methods.lora_space.postgres_store import PostgresStore

    wanted = similar("anime/a0.safetensors").args[1:3]
    server = pgserver.get_server(tmp_path / "postgres")
    try:
        monkeypatch.setenv(lora_collection.POSTGRES_VARIABLE, server.get_uri())
        assert similar("anime/a0.safetensors").args[1:3] == wanted
        assert "lora_space_" in server.psql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        # Of an unchanged collection nothing is sent or compared again.
        with monkeypatch.context() as unneeded:
            unneeded.setattr(PostgresStore, "sync", None)
            assert similar("anime/a0.safetensors").args[1:3] == wanted
    finally:
        server.cleanup()
    monkeypatch.setenv(lora_collection.POSTGRES_VARIABLE, "postgresql:///x?host=/nowhere")
    with pytest.raises(ValueError, match="does not answer") as told:
        similar("anime/a0.safetensors")
    assert "/nowhere" not in str(told.value) and "/nowhere" in caplog.text


def test_a_lora_with_nothing_to_compare_says_so():
    with pytest.raises(ValueError, match="no other LoRA is made for the same base model"):
        similar("xl.safetensors")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "absent.safetensors", "broken", "anime/a1.preview.png", ""])
def test_only_listed_names_lead_to_files(name):
    with pytest.raises(FileNotFoundError, match="There is no LoRA"):
        lora_collection.lora_path(name)
    assert lora_collection.preview_jpeg(name) is None
    with pytest.raises(ValueError, match="no LoRA collection"):
        lora_collection.roots_of(name)


def test_previews_come_from_beside_the_file_and_never_through_a_link_out_of_the_folder(shelf_folder, tmp_path):
    assert lora_collection.preview_jpeg("anime/a1.safetensors")[:2] == b"\xff\xd8"
    picture = lora_collection.preview_picture(shelf_folder / "anime" / "a1.safetensors")
    assert picture.size == (256, 171) and picture.getpixel((5, 5)) == (200, 30, 40)
    assert lora_collection.preview_jpeg("anime/a0.safetensors") is None
    outside = tmp_path / "private.png"
    Image.new("RGB", (8, 8)).save(outside)
    link = shelf_folder / "anime" / "a2.png"
    link.symlink_to(outside)
    torn = shelf_folder / "anime" / "a0.jpg"
    torn.write_bytes(b"\xff\xd8\xff")
    try:
        assert lora_collection.preview_jpeg("anime/a2.safetensors") is None
        assert lora_collection.preview_jpeg("anime/a0.safetensors") is None
    finally:
        link.unlink()
        torn.unlink()


def test_the_map_puts_styles_apart_and_names_them_by_their_folders():
    output = lora_map.LoRAMap.execute(indexed()[0], "all", 3, 256, "photo/p1.safetensors")
    image, selected, text, listed = output.args
    places = json.loads(text)
    assert image.shape == (1, 256, 256, 3) and selected == "photo/p1.safetensors" == listed[0]
    assert output.ui == {"lora_map": [places]}
    by_style = {style: {p["cluster"] for p in places["points"] if p["name"].startswith(style)} for style in STYLES}
    assert len(places["points"]) == 9 and len(set.union(*by_style.values())) == 3
    assert {places["clusters"][number]["label"] for numbers in by_style.values() for number in numbers} == set(STYLES)
    assert all(0 <= point[axis] <= 1 for point in places["points"] for axis in "xy")
    assert all(point["family"] == places["family"] and point["date"] > "2020" for point in places["points"])
    plain = lora_map.LoRAMap.execute(indexed()[0], "all", 3, 256, listed="b.safetensors | c.safetensors")
    assert not torch.equal(plain[0], image), "the selected LoRA is not marked"
    assert plain[3] == ["b.safetensors", "c.safetensors"]


def test_copies_are_found_under_another_name_dtype_rank_and_strength(shelf_folder):
    state = load_file(shelf_folder / "anime" / "a0.safetensors")
    padded = {}
    for key, tensor in state.items():
        extra = torch.zeros(2, *tensor.shape[1:]) if "lora_down" in key else torch.zeros(tensor.shape[0], 2) if "lora_up" in key else None
        padded[key] = tensor * (RANK + 2) / RANK if extra is None else torch.cat([tensor, extra], 0 if "lora_down" in key else 1)
    made = {
        "same.safetensors": state,
        "half.safetensors": {key: tensor.bfloat16() for key, tensor in state.items()},
        "padded.safetensors": padded,
        "strong.safetensors": {key: tensor * 2 if "lora_up" in key else tensor for key, tensor in state.items()},
        "later.safetensors": {
            key: 1.01 * tensor + 0.05 * randn(*tensor.shape, seed=5) if "lora_up" in key else tensor for key, tensor in state.items()
        },
    }
    try:
        for name, tensors in made.items():
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, shelf_folder / name)
        report, copies, table, relatives = lora_space.FindDuplicateLoRAs.execute(indexed()[0], 0.998).args
    finally:
        for name in made:
            (shelf_folder / name).unlink(missing_ok=True)
    assert len(copies) == 4 and set(copies) <= {*made, "anime/a0.safetensors"} - {"later.safetensors"}
    assert "dtype" in report and "rank" in report and "strength 2" in report and "the same change times 2" in report
    # This shelf's styles are alike as steps of one training are: near in every tensor.
    assert "later.safetensors" not in copies and "later.safetensors" in relatives and not {*relatives} & {*made} - {"later.safetensors"}
    assert "later.safetensors is a later step of the training of" in report
    assert table.shape[2] == 720
    assert lora_space.FindDuplicateLoRAs.execute(indexed()[0], 0.998).args[0].startswith("No duplicates.")


def test_what_comfyui_cannot_load_is_said_and_converted_to_the_same(shelf_folder):
    state = load_file(shelf_folder / "anime" / "a0.safetensors")
    odd = {
        key.replace("lora_down.weight", "lora_A.x.weight").replace("lora_up.weight", "lora_B.x.weight"): one for key, one in state.items()
    }
    save_file(odd, shelf_folder / "odd.safetensors", {"ss_base_model_version": "sd_v1"})
    folder_paths.filename_list_cache.pop("loras", None)
    try:
        index, text = indexed().args
        assert "odd.safetensors: ComfyUI cannot load this file, because its loader does not look for LoRA weights under" in text
        found = json.loads(similar("anime/a0.safetensors", k=1, index=index)[4])
        assert found[0]["name"] == "odd.safetensors" and "cannot load" in found[0]["loading"]
        assert "odd.safetensors: ComfyUI cannot load" in lora_space.FindDuplicateLoRAs.execute(index, 0.998)[0]
        name, report = convert_lora.ConvertLoRA.execute("odd.safetensors", "as it is", "", False).args
        assert name == "odd converted.safetensors" and "cannot load" in report
        made = load_file(shelf_folder / name)
        assert made.keys() == state.keys() and all(torch.equal(made[key], one) for key, one in state.items())
        assert convert_lora.ConvertLoRA.execute("odd.safetensors", "as it is", "", False)[0] == name
        with pytest.raises(ValueError, match="is there already"):
            convert_lora.ConvertLoRA.execute("odd.safetensors", "fp16", "", False)
        for bad in ("../out", "a/b", "con"):
            with pytest.raises(ValueError, match="name"):
                convert_lora.ConvertLoRA.execute("odd.safetensors", "as it is", bad, False)
        with pytest.raises(ValueError, match="written over itself"):
            convert_lora.ConvertLoRA.execute("odd.safetensors", "fp16", "odd", True)
        with pytest.raises(FileNotFoundError):
            convert_lora.ConvertLoRA.execute("/etc/passwd", "fp16", "odd x", True)
    finally:
        for path in shelf_folder.glob("odd*"):
            path.unlink()
        folder_paths.filename_list_cache.pop("loras", None)


def test_a_blend_changes_each_weight_by_the_weighted_mean_of_the_loras(loaded, shelf_folder, tmp_path, monkeypatch):
    model = loaded("sd15").model
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    before = model.model.state_dict()[key].double()
    names = []
    for seed in (1, 2):
        layer = f"{PREFIX}attn1_to_q"
        state = {
            f"{layer}.lora_up.weight": randn(before.shape[0], 2, seed=seed),
            f"{layer}.lora_down.weight": randn(2, before.shape[1], seed=seed + 5),
        }
        save_file(state | {f"{layer}.alpha": torch.tensor(1.0)}, tmp_path / f"{seed}.safetensors")
        names.append((f"{seed}.safetensors", 0.5 * state[f"{layer}.lora_up.weight"].double() @ state[f"{layer}.lora_down.weight"].double()))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("loras", None)
    [blended, clip] = lora_space.BlendLoRAs.execute([model], [name for name, _ in names], [2.0], weights=[0.9, 0.3]).args
    expected = before + 2.0 * (0.75 * names[0][1] + 0.25 * names[1][1])
    after = comfy.lora.calculate_weight(blended.patches[key], before.float().clone(), key).double()
    assert clip is None and key not in model.patches
    assert (after - expected).abs().max() < 1e-5
    with pytest.raises(ValueError, match="3 weights came for 2 LoRAs"):
        lora_space.BlendLoRAs.execute([model], [name for name, _ in names], [1.0], weights=[1, 1, 1])
    with pytest.raises(ValueError, match="Every weight is 0 or less"):
        lora_space.BlendLoRAs.execute([model], [names[0][0]], [1.0], weights=[-0.2])
    with pytest.raises(ValueError, match="No LoRA came"):
        lora_space.BlendLoRAs.execute([model], [lora_space.NONE], [1.0])


def test_an_interrupt_ends_the_reading():
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        indexed()
    assert "9 LoRAs" not in indexed()[1] and "10 LoRAs are in this index" in indexed()[1]


def test_the_index_works_in_another_thread_than_the_one_that_made_it():
    index, found = indexed()[0], []
    worker = threading.Thread(target=lambda: found.append(similar("anime/a0.safetensors", index=index).args[1]))
    worker.start()
    worker.join()
    assert len(found[0]) == 2


def test_every_input_has_a_tooltip_and_every_node_its_help_page():
    pages = Path(lora_space.__file__).parents[1] / "web" / "docs"
    for node in (*lora_space.NODES, *convert_lora.NODES):
        declared = node.define_schema()
        assert all(one.tooltip for one in (*declared.inputs, *declared.outputs)), declared.node_id
        page = (pages / f"{declared.node_id}.md").read_text(encoding="utf-8")
        missing = [one.id for one in declared.inputs if f"`{one.id}`" not in page]
        missing += [one.display_name for one in declared.outputs if f"`{one.display_name}`" not in page]
        assert page.startswith(f"# {declared.display_name}\n") and not missing, (declared.node_id, missing)


def test_the_extension_offers_these_nodes():
    from intrinsic_lab.nodes import IntrinsicLabExtension

    assert set(lora_space.NODES) <= set(asyncio.run(IntrinsicLabExtension().get_node_list()))
