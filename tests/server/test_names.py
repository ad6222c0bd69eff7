"""Nodes as people look for them: the front end's search, its help panel, its languages."""

import pytest
from intrinsic_lab.tests.server.test_front_end import SELECT_NEW

# What the search dialogue asks, in its order; core's nodes are in between.
SEARCH = """queries => {
    const stores = document.querySelector("#vue-app").__vue_app__.config.globalProperties.$pinia._s;
    const search = stores.get("nodeDef").nodeSearchService;
    const ours = name => name.startsWith("IntrinsicLab");
    return queries.map(query => search.searchNode(query).map(found => found.name).filter(ours).map(name => name.slice(12)));
}"""
FIRST = {
    "photo to maps": "PictureToMaps",
    "image to maps": "PictureToMaps",
    "normal map": "PictureToMaps",
    "depth map": "PictureToMaps",
    "base color": "PictureToMaps",
    "delight": "PictureToMaps",
    "material": "PictureToMaps",
    "pbr": "PictureToMaps",
    "roughness": "ExtractMaps",
    "metallic": "ExtractMaps",
    "exr": "ExportMaps",
    "flux maps": "ApplyTensorLoRA",
    "text to pbr": "ApplyTensorLoRA",
    "relight": "Relight",
    "lamp": "PlaceLamp",
    "segmentation": "DecodeIntrinsics",
    "depth video": "ExtractSequence",
    "video depth": "ExtractSequence",
    "similar lora": "FindSimilarLoRAs",
    "duplicate lora": "FindDuplicateLoRAs",
    "convert lora": "ConvertLoRA",
    "lora key not loaded": "ConvertLoRA",
    "lora map": "LoRAMap",
    "train lora": "TrainLoRA",
    "normal map lora": "ApplyLoRA",
    "directx": "FormatNormals",
    "flip green": "FormatNormals",
    "invert depth": "FormatDepth",
    "srgb to linear": "AlbedoFromPicture",
    "moge": "MapsFromGeometry",
    "stylegan": "LoadGAN",
    "vqgan": "LoadVQGAN",
    "ground truth": "RenderScene",
    "benchmark": "LoadDataSet",
    "diode": "LoadDataSet",
}


def test_what_people_search_for_finds_its_node_first(page):
    found = dict(zip(FIRST, page.evaluate(SEARCH, list(FIRST)), strict=True))
    wrong = {query: f"{names[:4]}, wanted {FIRST[query]}" for query, names in found.items() if names[:1] != [FIRST[query]]}
    assert wrong == {}


def test_a_help_page_shows_its_picture_within_the_panel(page):
    page.evaluate(SELECT_NEW, "IntrinsicLabRelight")
    if not page.get_by_test_id("panel-tab-info").is_visible():
        page.get_by_test_id("info-button").click()
    page.get_by_test_id("panel-tab-info").click()
    panel = page.get_by_test_id("properties-panel")
    picture = panel.locator("img").first
    picture.wait_for(timeout=20_000)
    page.wait_for_function("image => image.naturalWidth > 0", arg=picture.element_handle(), timeout=20_000)
    assert picture.bounding_box()["width"] <= panel.bounding_box()["width"]


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_comfyui_hands_out_the_translations(client, language):
    served = client.get("/i18n")[1][language]
    assert len(served["nodeDefs"]) == len([name for name in client.get("/object_info")[1] if name.startswith("IntrinsicLab")])
    assert "intrinsic lab" in served["nodeCategories"]
