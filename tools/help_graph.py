"""What the help pages show: one graph of real runs, and for each node what goes in and what comes out of it."""

import time
from collections.abc import Sequence
from itertools import count
from typing import Any

from PIL import Image

from ..methods.ildm import schedules
from ..methods.ildm.heat_map import heat_map

ARROW = None
# By node id: a name and what is shown under it, an output [node, number], what a node shows itself [node], or a picture; ARROW between in
# and out.
Strips = dict[str, Sequence[tuple[str, Any]]]
NANO = "nano (bundled)"
# Of SD 1.5: self-attentions by stage.
LAYOUT = schedules.stage_blocks((2, 2, 2, 0, 1, 0, 3, 3, 3))
BLOCKS = "blocks from the top, noise to clean from the left"
SCENE = "a marbled yellow ball, a striped pink box and a blue box on a gray floor, red walls, light from front"


class Graph:
    """A prompt in the making; inputs that are not given have what a new node has in the front end."""

    def __init__(self, nodes: dict[str, dict]):
        """nodes: the server's /object_info."""
        self.nodes, self._ids = nodes, count(1)
        self.prompt: dict[str, dict] = {}

    def node(self, kind: str, /, **given: Any) -> str:
        """Adds a node; returns its id. Values of choices inside a choice are given as range__near."""
        given = {name.replace("__", "."): value for name, value in given.items()}
        for name, spec in self.nodes[kind]["input"].get("required", {}).items():
            if name not in given:
                given |= _default(name, spec)
        node_id = str(next(self._ids))
        self.prompt[node_id] = {"class_type": kind, "inputs": given, "_meta": {"title": kind}}
        return node_id

    def ours(self, kind: str, /, **given: Any) -> str:
        """Adds one of the pack's nodes."""
        return self.node(f"IntrinsicLab{kind}", **given)

    def keep(self, wanted: set[str]) -> None:
        """Drops what these nodes do not need."""
        needed, waiting = set(), list(wanted)
        while waiting:
            if (node := waiting.pop()) not in needed:
                needed.add(node)
                waiting += [value[0] for value in self.prompt[node]["inputs"].values() if isinstance(value, list)]
        self.prompt = {node: kept for node, kept in self.prompt.items() if node in needed}


def _default(name: str, spec: list) -> dict[str, Any]:
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    choices = kind if isinstance(kind, list) else options.get("options")
    if choices and isinstance(choices[0], dict):
        # A choice with inputs of its own: the first.
        inner = choices[0]["inputs"].get("required", {})
        found = {name: choices[0]["key"]}
        for own, own_spec in inner.items():
            found |= {f"{name}.{own}": value for value in _default(own, own_spec).values()}
        return found
    if "default" in options:
        return {name: options["default"]}
    return {name: choices[0]} if choices else {}


def _heat(schedule: schedules.WeightSchedule) -> Image.Image:
    return Image.fromarray((heat_map(schedule, LAYOUT)[0] * 255).round().byte().numpy())


def strips(graph: Graph) -> Strips:
    """Adds every run to the graph; what each page shows."""
    ours, node = graph.ours, graph.node

    def look(kind: str, link: list, **how: Any) -> list:
        """A map's data as a picture."""
        if kind == "normal":
            return [ours("FormatNormals", normal=link, **how), 0]
        if kind == "depth":
            return [ours("FormatDepth", depth=link, **how), 0]
        return [ours("FormatColor", map=link, **how), 0]

    def looks(names: tuple[str, ...], source: str, first: int = 0) -> list[tuple[str, list]]:
        return [(name, look(name, [source, first + number])) for number, name in enumerate(names)]

    kinds = ("normal", "depth", "albedo", "shading")
    room = ours("RenderScene", seed=122, width=256, height=256)
    table = ours("RenderScene", seed=5, width=256, height=256, kind="tabletop")
    picture, tables = ("picture", [room, 0]), ("picture", [table, 0])
    exact = [("normal", look("normal", [room, 3])), ("depth", look("depth", [room, 4])), ("albedo", look("albedo", [room, 1]))]
    exact += [("shading", look("shading", [room, 2]))]
    load = ours("LoadModel", model=NANO)
    model, clip, vae = ([load, number] for number in range(3))
    parts = {"clip": clip, "vae": vae}

    def carrying(*names: str, **how: Any) -> list:
        carried = model
        for name in names:
            carried = [ours("ApplyLoRA", model=carried, lora_name=f"nano/{name} (bundled)", **how), 0]
        return carried

    extract = ours("ExtractMaps", model=carrying(*kinds), image=[room, 0], **parts)
    extracted = looks(kinds, extract)
    one = ours("PictureToMaps", image=[room, 0])
    steps = ours("ExtractMapsInSteps", model=carrying("normal augmented"), image=[room, 0], **parts)
    move = ours("RenderCameraMove", seed=122, width=256, height=256, frames=4, sideways=1.2, forward=0.8, turn=10.0)
    sequence = ours("ExtractSequence", model=carrying("normal", "depth"), image=[move, 0], **parts)

    def frame(link: list, number: int) -> list:
        return [node("ImageFromBatch", image=link, batch_index=number, length=1), 0]

    sequence_depth = look("depth", [sequence, 1], range="per sequence", range__low_percentile=0.0, range__high_percentile=100.0)
    weak = [
        look("normal", [ours("ExtractMaps", model=carrying("normal", strength=share), image=[room, 0], **parts), 0]) for share in (0.3, 0.6)
    ]
    vqgan = ours("LoadVQGAN")
    of_vqgan = looks(kinds, ours("ExtractMapsVQGAN", vqgan=[vqgan, 0], image=[room, 0]))
    plain = ours("ExtractMapsVQGAN", vqgan=[vqgan, 0], image=[room, 0], strength=0.0)

    text = {"positive": [node("CLIPTextEncode", text=SCENE, clip=clip), 0], "negative": [node("CLIPTextEncode", text="", clip=clip), 0]}
    empty = [node("EmptyLatentImage", width=128, height=128), 0]
    sampling = {"steps": 20, "cfg": 2.0, "sampler_name": "euler_ancestral", "scheduler": "normal", "seed": 122, **text}

    def decoded(latent: list) -> list:
        return [node("VAEDecode", samples=latent, vae=vae), 0]

    def sampled(of_model: list, latent: list = empty, **how: Any) -> list:
        return [node("KSampler", model=of_model, latent_image=latent, denoise=1.0, **sampling | how), 0]

    gaussian = ours("GaussianSchedule")
    bumps = schedules.gaussian_schedule(tau=700.0)
    drops = schedules.drop_schedule(schedules.at_stages(schedules.parse_positions("3-7")), 600.0)
    intrinsic_vae = [ours("LoadIntrinsicVAE", intrinsic_vae=NANO), 0]
    small = ours("RenderScene", seed=122, width=128, height=128)
    given = [ours("EncodeIntrinsics", intrinsic_vae=intrinsic_vae, depth=[small, 4], normal=[small, 3], line=[small, 6]), 0]
    names = ("depth", "normal", "segmentation", "line")

    def four(source: str) -> list[tuple[str, list]]:
        return [("depth", look("depth", [source, 0])), ("normal", look("normal", [source, 1])), *((names[n], [source, n]) for n in (2, 3))]

    joint_model = [ours("CrossDomainAttention", model=model, schedule=[gaussian, 0], lora_name="nano/ildm (bundled)"), 0]
    joint = ours("SplitDomains", joint_latent=sampled(joint_model, [ours("JointLatent", latent=empty), 0]))
    joint_maps = four(ours("DecodeIntrinsics", intrinsic_vae=intrinsic_vae, intrinsic_latent=[joint, 1]))
    joint_picture = ("picture", decoded([joint, 0]))
    round_trip = four(ours("DecodeIntrinsics", intrinsic_vae=intrinsic_vae, intrinsic_latent=given))

    flux = ours("LoadModel", model="nano FLUX (bundled)")
    lumix = [ours("ApplyTensorLoRA", model=[flux, 0], lora_name="nano/lumix (bundled)"), 0]
    words = "a blue ball, a red box and a green cylinder on a white floor, gray walls, light from left"
    prompts = {name: [node("CLIPTextEncode", text=said, clip=[flux, 1]), 0] for name, said in (("positive", words), ("negative", ""))}
    from_text = ours("JointSampler", model=lumix, width=128, height=128, steps=24, seed=4, **prompts)
    five = ("albedo", "irradiance", "color", "depth", "normal")

    def lumix_maps(source: str) -> list[tuple[str, list]]:
        made = ours("DecodeMaps", maps=[source, 5], vae=[flux, 2])
        return [(name, [made, number] if name == "color" else look(name, [made, number])) for number, name in enumerate(five)]

    text_maps = lumix_maps(from_text)
    color = [node("VAEEncode", pixels=[small, 0], vae=[flux, 2]), 0]
    kept = [ours("MapLatents", model=lumix, color=color), 0]
    from_color = lumix_maps(ours("JointSampler", model=lumix, latent=kept, steps=24, seed=4, guidance=1.0, cfg=1.0, **prompts))
    joined = [ours("JoinMaps", model=model, maps="color, depth, normal"), 0]
    alike = sampled(joined, [ours("MapLatents", model=joined, width=128, height=128), 0])
    alone = sampled(model, [node("RepeatLatentBatch", samples=empty, amount=3), 0])

    def rows(latent: list, count: int, label: str) -> list[tuple[str, list]]:
        return [(f"{label} {number + 1}", frame(decoded(latent), number)) for number in range(count)]

    bundle = [
        ours(
            "BundleMaps",
            image=[table, 0],
            normal=[table, 3],
            depth=[table, 4],
            albedo=[table, 1],
            shading=[table, 2],
            roughness=[table, 10],
            metallic=[table, 11],
        ),
        0,
    ]
    shown = ours("PicturesOfMaps", maps=bundle)
    of_table = [(name, [shown, number]) for number, name in enumerate((*kinds, "roughness", "metallic"))]
    directx, opencv = (look("normal", [room, 3], convention=name) for name in ("DirectX (Y down)", "OpenCV (Y down, Z away)"))
    maps = {"albedo": [table, 1], "normal": [table, 3], "depth": [table, 4], "roughness": [table, 10], "metallic": [table, 11]}

    def lit(x: float, y: float, color: str) -> list:
        lamp = [ours("PlaceLamp", x=x, y=y, color=color, intensity=1.3), 0]
        return [ours("Relight", light="by hand", light__lamps=lamp, light__relief=1.0, light__shadows=0.9, light__hardness=0.5, **maps), 0]

    left, middle, right = lit(0.15, 0.2, "#ffd9a0"), lit(0.5, 0.1, "#ffffff"), lit(0.85, 0.25, "#a8c8ff")
    sun = [ours("Relight", light="directional", light__azimuth=-60.0, light__elevation=30.0, ambient=0.1, **maps), 0]
    compare = ours("CompareMaps", prediction=[extract, 0], reference=[room, 3])
    index = [ours("IndexLoRAs", collection="nano styles (bundled)"), 0]
    query = "ember/ember_0.safetensors (bundled)"
    similar = ours("FindSimilarLoRAs", lora_index=index, query=query, k=3)
    lora_map = ours("LoRAMap", lora_index=index, clusters=6, size=440, selected=query)
    duplicates = ours("FindDuplicateLoRAs", lora_index=index)
    blend = [ours("BlendLoRAs", model=model, lora_names=[similar, 1]), 0]
    converted = ours("ConvertLoRA", lora_name=query, precision="as it is", name="help ember", overwrite=True)
    before, after = ([ours("BlendLoRAs", model=model, lora_names=name), 0] for name in ([lora_map, 1], [converted, 0]))
    data = ours("LoadDataSet", count=2)
    judged = ours("ExtractMaps", model=carrying("normal"), image=[data, 0], **parts)
    evaluated = ours("EvaluateMaps", prediction=[judged, 0], reference=[data, 1], image=[data, 0], mask=[data, 2])
    # A run of its own each time: one that is over would show no sample.
    now = f"{time.time():.0f}"
    short = {"steps": 60, "scenes": 40, "size": 64, "batch": 2}
    trained = ours("TrainLoRA", base=NANO, map="normal", name=f"help {now}", kind="wide", learning_rate=0.003, checkpoint_every=20, **short)
    vae_run = ours("TrainIntrinsicVAE", base=NANO, name=f"help VAE {now}", learning_rate=0.001, **short)
    joint_run = ours("TrainJointLoRA", base=NANO, intrinsic_vae=NANO, name=f"help joint {now}", learning_rate=0.002, **short)
    tensor_run = ours("TrainTensorLoRA", base="nano FLUX (bundled)", name=f"help tensor {now}", learning_rate=0.002, **short)
    mask = [node("MaskToImage", mask=[room, 7]), 0]
    reference_mask = [node("MaskToImage", mask=[data, 2]), 0]
    colors = [(name, [ours("ColorMap", values=[extract, 1], color_map=name), 0]) for name in ("turbo", "viridis", "magma", "grey")]
    stops = [(f"{stop:+.0f} stops", look("albedo", [room, 1], exposure=stop)) for stop in (-2.0, 2.0)]
    linear = look("albedo", [room, 1], encoding="linear")
    far_bright = look("depth", [room, 4], look="near dark, far bright")

    shown_strips: Strips = {
        "PictureToMaps": [picture, ("", ARROW), *((name, [one, number]) for number, name in enumerate(kinds))],
        "LoadModel": [("a picture that the bundled model makes", decoded(sampled(model))), ("and a map that it reads", extracted[0][1])],
        "ApplyLoRA": [picture, ("", ARROW), ("strength 0.3", weak[0]), ("0.6", weak[1]), ("1", extracted[0][1])],
        "ExtractMaps": [picture, ("", ARROW), *extracted],
        "ExtractSequence": [
            ("first frame", frame([move, 0], 0)),
            ("last", frame([move, 0], 3)),
            ("", ARROW),
            ("depth of the first", frame(sequence_depth, 0)),
            ("and the last", frame(sequence_depth, 3)),
        ],
        "ExtractMapsInSteps": [picture, ("", ARROW), ("in steps", look("normal", [steps, 0])), ("in one step", extracted[0][1])],
        "DecodeMap": [picture, ("", ARROW), ("normal, decoded", look("normal", [steps, 0]))],
        "LoadVQGAN": [picture, ("", ARROW), ("without a LoRA", look("albedo", [plain, 2])), ("normal LoRA", of_vqgan[0][1])],
        "ExtractMapsVQGAN": [picture, ("", ARROW), *of_vqgan],
        "LoadGAN": [("drawn: a scene", [table, 0]), *((name, link) for name, link in of_table[:4])],
        "SampleGAN": [("drawn: a scene", [table, 0]), *((name, link) for name, link in of_table[:4])],
        "DropSchedule": [(BLOCKS, _heat(drops))],
        "GaussianSchedule": [(BLOCKS, _heat(bumps))],
        "CombineSchedules": [
            ("first", _heat(bumps)),
            ("second", _heat(drops)),
            ("", ARROW),
            ("maximum", _heat(schedules.maximum(bumps, drops))),
        ],
        "CrossDomainAttention": [joint_picture, *joint_maps],
        "JointLatent": [joint_picture, *joint_maps],
        "SplitDomains": [joint_picture, ("and its intrinsics:", joint_maps[0][1]), *joint_maps[1:]],
        "DecodeIntrinsics": joint_maps,
        "LoadIntrinsicVAE": round_trip,
        "EncodeIntrinsics": [
            ("depth", look("depth", [small, 4])),
            ("normal", look("normal", [small, 3])),
            ("line", [small, 6]),
            ("", ARROW),
            ("decoded again", round_trip[0][1]),
            ("", round_trip[1][1]),
            ("", round_trip[3][1]),
        ],
        "ApplyTensorLoRA": text_maps,
        "JoinMaps": [*rows(alone, 3, "apart"), ("", ARROW), *rows(alike, 3, "joined")],
        "MapLatents": [("color, given", [small, 0]), ("", ARROW), *[from_color[number] for number in (0, 1, 3, 4)]],
        "MapSigmas": text_maps,
        "MapPrompts": rows(alike, 3, "row"),
        "JointSampler": text_maps,
        "SplitMaps": text_maps,
        "DecodeMaps": text_maps,
        "BundleMaps": [tables, *of_table, ("", ARROW)][:-1],
        "OpenMaps": [tables, *of_table],
        "ExportMaps": [("layers of one file: picture", [table, 0]), *of_table],
        "PicturesOfMaps": of_table,
        "MapsFromGeometry": [picture, *exact[:2], ("known", mask)][:3],
        "FormatNormals": [("OpenGL", exact[0][1]), ("DirectX", directx), ("OpenCV", opencv)],
        "NormalsFromColor": [("DirectX picture", directx), ("", ARROW), ("read: OpenGL", exact[0][1])],
        "FormatDepth": [("near bright", exact[1][1]), ("near dark", far_bright)],
        "FormatColor": [("linear", linear), ("sRGB", exact[2][1]), *stops],
        "ColorMap": colors,
        "AlbedoFromPicture": [("sRGB picture", exact[2][1]), ("", ARROW), ("linear data", linear)],
        "CompareMaps": [("prediction", extracted[0][1]), ("reference", exact[0][1]), ("", ARROW), ("error", [compare, 1])],
        "IndexLoRAs": [("what an index finds: similar ones together", [lora_map, 0])],
        "FindSimilarLoRAs": [("", [similar, 3])],
        "LoRAMap": [("", [lora_map, 0])],
        "FindDuplicateLoRAs": [("", [duplicates, 2])],
        "ConvertLoRA": [("with the file as it was", decoded(sampled(before))), ("converted: the same", decoded(sampled(after)))],
        "BlendLoRAs": [("without", decoded(sampled(model))), ("with the blend", decoded(sampled(blend)))],
        "TrainLoRA": [("while it trains", [trained])],
        "TrainIntrinsicVAE": [("while it trains", [vae_run])],
        "TrainJointLoRA": [("while it trains", [joint_run])],
        "TrainTensorLoRA": [("while it trains", [tensor_run])],
        "RenderScene": [tables, *of_table[:4], ("segmentation", [table, 5]), ("line", [table, 6])],
        "RenderCameraMove": [(f"frame {number + 1}", frame([move, 0], number)) for number in range(4)],
        "Relight": [("before", [table, 0]), ("", ARROW), ("lamp by hand", left), ("another", right), ("directional", sun)],
        "PlaceLamp": [("frame 1", left), ("in between", middle), ("last frame", right)],
        "LoadDataSet": [("picture", [data, 0]), ("reference", look("normal", [data, 1])), ("mask", reference_mask)],
        "EvaluateMaps": [("best, median, worst", [evaluated, 1])],
    }
    return {f"IntrinsicLab{name}": columns for name, columns in shown_strips.items()}
