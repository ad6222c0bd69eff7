"""Finding LoRAs by their weights: index, search, duplicates, blend."""

import json
from dataclasses import replace
from pathlib import Path

import comfy.sd
from comfy_api.latest import io, ui

# What only an execution needs is imported there: the pack loads with ComfyUI, whether its nodes are used or not.
from ..methods.lora.names import SUBNETWORKS
from ..methods.lora_space.entries import Entry
from .native.lora_library import lora_collection
from .native.lora_library.lora_collection import LoraCollection, lora_path, shown_name
from .native.lora_library.lora_pictures import Row, table_picture
from .native.node import Node
from .native.node_text import preview_text
from .native.schema import schema

Index = io.Custom("LORA_INDEX")
CATEGORY = "intrinsic lab/lora space"
ANY, NONE = "any", "none"
# Offered before anything is indexed; the others come from what the index holds.
FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux1", "flux2", "pixart", "wan", "qwen-image", "z-image")
INDEX_TOOLTIP = "From Index LoRAs."
PARTS_TOOLTIP = "Which weights count: all, only attention, only feed-forward, or only the text encoder."
NAME_TOOLTIP = "Connect it to lora_name of Load LoRA."


def parts_input() -> io.Combo.Input:
    return io.Combo.Input("subnetwork", display_name="weights that count", options=list(SUBNETWORKS), default="all", tooltip=PARTS_TOOLTIP)


def _about(entry: Entry) -> str:
    facts = entry.as_json()
    tags = ", ".join(entry.tags[:4])
    approximate = ", approximate" if entry.approximate else ""
    variant = f" ({entry.variant})" if entry.variant else ""
    about = f"{entry.family}{variant}, {entry.format} of rank {facts['rank']}, {entry.dtype}{approximate}" + (f"; {tags}" if tags else "")
    return f"{about}. {entry.loading}" if entry.loading else about


class IndexLoRAs(Node):
    """Brings the index of a LoRA collection in step with its files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabIndexLoRAs",
            display_name="Index LoRAs",
            category=CATEGORY,
            description=(
                "Reads every LoRA of models/loras once and keeps what its weights look like, so that similar ones can be found without "
                "generating a picture. Later runs only read new and changed files. LoRA, LoHa, LoKr, DoRA and kin; safetensors."
            ),
            search_aliases=["lora library", "lora manager", "scan loras", "lora space", "organize loras"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "collection",
                    options=list(lora_collection.COLLECTIONS),
                    tooltip="models/loras (with extra_model_paths), or the small style LoRAs that come with the pack, to try things on.",
                ),
                io.Combo.Input(
                    "family",
                    options=list(dict.fromkeys([ANY, *FAMILIES, *lora_collection.indexed_families()])),
                    default=ANY,
                    tooltip="Only LoRAs of this base model; what the index holds joins the list when the page is loaded again. LoRAs of "
                    "different bases cannot be compared: with 'any', searches stay within the query's own base, the map takes the "
                    "commonest. A name that several begin with, such as wan, means the commonest of them.",
                ),
                io.String.Input(
                    "folder",
                    default="",
                    optional=True,
                    tooltip="Only LoRAs below this folder of the collection, such as 'styles/anime'. Empty: all.",
                ),
            ],
            outputs=[
                Index.Output(
                    "LORA_INDEX", display_name="lora_index", tooltip="For Find Similar LoRAs, Draw LoRA Map, Find Duplicate LoRAs."
                ),
                io.String.Output("STATISTICS", display_name="statistics", tooltip="What was found, and every file that could not be read."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, collection: str, family: str = ANY, folder: str = "") -> str:
        return lora_collection.files_state(collection)

    @classmethod
    def execute(cls, collection: str, family: str = ANY, folder: str = "") -> io.NodeOutput:
        folder = folder.strip().strip("/\\")
        chosen = None if family == ANY else family
        chosen_loras = LoraCollection(collection, chosen, folder or None, lora_collection.files_state(collection))
        roots = lora_collection.roots_of(collection)
        with chosen_loras.open() as index:
            summary = index.update(roots, report=lora_collection.progress_report())
            if chosen and chosen not in (found := index.families()):
                chosen = next((family for family in found if family.startswith(f"{chosen}-")), chosen)
                chosen_loras = replace(chosen_loras, family=chosen)
            entries = index.entries(family=chosen, folder=chosen_loras.folder)
            counted = ", ".join(f"{name} {count}" for name, count in index.families().items())
            not_loading = index.not_loading(family=chosen, folder=chosen_loras.folder)
        if not entries and (chosen or chosen_loras.folder):
            raise ValueError(
                f"No LoRA of {collection} is {f'for {chosen}' if chosen else 'readable'}{f' below {folder!r}' if folder else ''} "
                f"(base models found: {counted or 'none'}): choose '{ANY}', or another folder."
            )
        # Whoever looks at the graph need not learn where the folders lie.
        text = summary.text()
        for root in roots:
            text = text.replace(f"{root}/", "")
        text += f"\nBase models: {counted or 'none'}. {len(entries)} LoRAs are in this index."
        text += "".join(f"\n{shown_name(entry, collection)}: {entry.loading}" for entry in not_loading)
        return io.NodeOutput(chosen_loras, text, ui=preview_text(text))


def listed_names(text: str) -> list[str]:
    """Names that a person wrote, a line each or with | between, which no file name on Windows may hold."""
    return [name.strip() for line in text.splitlines() for name in line.split("|") if name.strip()]


class FindSimilarLoRAs(Node):
    """The nearest LoRAs of an index to one or several others."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabFindSimilarLoRAs",
            display_name="Find Similar LoRAs",
            category=CATEGORY,
            description=(
                "Finds the LoRAs whose weights do most nearly what a given LoRA does: no picture is generated and no tag is trusted. "
                "The names plug into Load LoRA; the list runs it once per LoRA found."
            ),
            search_aliases=["similar lora", "lora search", "lora recommendation", "lora space", "which lora"],
            is_output_node=True,
            inputs=[
                Index.Input("lora_index", tooltip=INDEX_TOOLTIP),
                io.Combo.Input(
                    "query",
                    display_name="like this LoRA",
                    options=lora_collection.lora_names(),
                    tooltip="The LoRA that others shall resemble.",
                ),
                io.Int.Input("k", display_name="how many", default=5, min=1, max=100, tooltip="How many to find."),
                parts_input(),
                io.String.Input(
                    "also_like",
                    display_name="and like these",
                    default="",
                    optional=True,
                    tooltip="More LoRAs to resemble, names with | between: the middle of all of them is searched for.",
                ),
                io.String.Input(
                    "unlike",
                    display_name="but unlike these",
                    default="",
                    optional=True,
                    tooltip="LoRAs to stay away from, names with | between: they are subtracted from the query.",
                ),
                io.Int.Input(
                    "exact_candidates",
                    display_name="compared exactly",
                    default=50,
                    min=0,
                    max=500,
                    optional=True,
                    tooltip="So many of the best are read again and compared exactly. 0: by the index alone, in milliseconds.",
                ),
                io.String.Input(
                    "folder",
                    default="",
                    optional=True,
                    tooltip="Only LoRAs below this folder of the collection, such as 'styles/anime'. Empty: those of the index.",
                ),
            ],
            outputs=[
                io.AnyType.Output("LORA_NAME", display_name="lora_name", tooltip=f"The most similar LoRA. {NAME_TOOLTIP}"),
                io.AnyType.Output(
                    "LORA_NAMES", display_name="lora_names", is_output_list=True, tooltip=f"All found, best first. {NAME_TOOLTIP}"
                ),
                io.Float.Output("SCORES", display_name="scores", is_output_list=True, tooltip="Their cosines with the query, -1 to 1."),
                io.Image.Output("TABLE", display_name="table", tooltip="Query and results with their preview pictures."),
                io.String.Output("TEXT", display_name="text", tooltip="The results as JSON."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        lora_index: LoraCollection,
        query: str,
        k: int,
        subnetwork: str,
        also_like: str = "",
        unlike: str = "",
        exact_candidates: int = 50,
        folder: str = "",
    ) -> io.NodeOutput:
        from ..methods.lora_space.search import find_similar

        like = [query, *listed_names(also_like)]
        away = listed_names(unlike)
        liked, disliked = ([lora_path(name) for name in names] for names in (like, away))
        with lora_index.open() as index:
            matches = find_similar(
                index,
                liked,
                disliked,
                k=k,
                subnetwork=subnetwork,
                family=lora_index.family,
                folder=folder.strip().strip("/\\") or lora_index.folder,
                rerank=exact_candidates,
                store=lora_collection.server_store(lora_index, index, liked, subnetwork),
                report=lora_collection.progress_report(),
            )
        if not matches:
            raise ValueError(
                f"{query} has nothing to be compared with in this index{f' below {folder!r}' if folder else ''}: no other LoRA is made for "
                "the same base model. Index a larger folder, or choose another query."
            )
        names = [shown_name(match.entry, lora_index.collection) for match in matches]
        scores = [float(match.score) for match in matches]
        rows = [Row(None, "Like")]
        rows += [Row(lora_path(name), name) for name in like]
        rows += [Row(None, "Unlike"), *(Row(lora_path(name), name) for name in away)] if away else []
        rows.append(Row(None, f"Most similar, by {'all weights' if subnetwork == 'all' else subnetwork.replace('_', '-')}"))
        rows += [
            Row(Path(match.entry.path), name, (f"similarity {score:.3f}", _about(match.entry)))
            for match, name, score in zip(matches, names, scores, strict=True)
        ]
        found = [
            {"name": name, "score": round(score, 6), "family": match.entry.family, "rank": match.entry.as_json()["rank"]}
            | ({"loading": match.entry.loading} if match.entry.loading else {})
            for match, name, score in zip(matches, names, scores, strict=True)
        ]
        table = table_picture(rows)
        return io.NodeOutput(
            names[0], names, scores, table, json.dumps(found, ensure_ascii=False, indent=1), ui=ui.PreviewImage(table, cls=cls)
        )


class FindDuplicateLoRAs(Node):
    """LoRAs that are the same weights twice."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabFindDuplicateLoRAs",
            display_name="Find Duplicate LoRAs",
            category=CATEGORY,
            description=(
                "Lists LoRAs that do the same: the same weights under another name, in another format or precision, padded to another "
                "rank, or at another strength. Beside them, what was made of what: later steps, lower ranks, merges with their shares. "
                "Nothing is deleted."
            ),
            search_aliases=["duplicate lora", "clean up loras", "same lora", "lora space", "dedupe"],
            is_output_node=True,
            inputs=[
                Index.Input("lora_index", tooltip=INDEX_TOOLTIP),
                io.Float.Input(
                    "threshold",
                    default=0.998,
                    min=0.5,
                    max=1.0,
                    step=0.001,
                    tooltip="Cosine from which on two LoRAs are compared exactly: copies differ by rounding and strength alone. "
                    "0.998 allows for 8-bit copies.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "REPORT", display_name="report", tooltip="Every group: which is kept, which are its copies, and how they differ."
                ),
                io.AnyType.Output(
                    "COPIES", display_name="copies", is_output_list=True, tooltip="Names of the copies, without the originals."
                ),
                io.Image.Output("TABLE", display_name="table", tooltip="The groups with their preview pictures."),
                io.AnyType.Output(
                    "RELATIVES",
                    display_name="relatives",
                    is_output_list=True,
                    tooltip="Names of LoRAs that were made from others and are no copies: later steps, lower ranks, parts, merges.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, lora_index: LoraCollection, threshold: float) -> io.NodeOutput:
        from ..methods.lora_space.duplicates import find_duplicates
        from ..methods.lora_space.relatives import find_relatives

        family, folder, report = lora_index.family, lora_index.folder, lora_collection.progress_report()

        def shown(entry: Entry) -> str:
            return shown_name(entry, lora_index.collection)

        with lora_index.open() as index:
            groups = find_duplicates(index, family=family, folder=folder, threshold=threshold, report=report)
            copies = {copy.entry.id for group in groups for copy in group.copies}
            relatives = find_relatives(index, family=family, folder=folder, copies=copies, report=report)
            not_loading = index.not_loading(family=family, folder=folder)
        rows, lines, names = [], [], []
        for number, group in enumerate(groups, 1):
            original = shown(group.original)
            rows += [Row(None, f"Group {number}"), Row(Path(group.original.path), original, ("the original", _about(group.original)))]
            lines.append(original)
            for copy in group.copies:
                differences = "; ".join((copy.text, *copy.differences))
                same = f"cosine {copy.cosine:.5f}, strength {copy.strength:.4g}"
                rows.append(Row(Path(copy.entry.path), shown(copy.entry), (differences, same)))
                lines.append(f"  = {shown(copy.entry)}: {differences} ({same})")
                names.append(shown(copy.entry))
        if not groups:
            lines, rows = ["No duplicates."], [Row(None, "No duplicates")]
        if relatives:
            rows.append(Row(None, "Relatives, no copies"))
            lines.append("Relatives, which are no copies:")
        for relative in relatives:
            rows.append(Row(Path(relative.entry.path), shown(relative.entry), (relative.text,)))
            lines.append(f"  ~ {relative.text}")
        lines += [f"{shown(entry)}: {entry.loading}" for entry in not_loading]
        table = table_picture(rows)
        made = list(dict.fromkeys(shown(relative.entry) for relative in relatives))
        return io.NodeOutput("\n".join(lines), names, table, made, ui=ui.PreviewImage(table, cls=cls))


class BlendLoRAs(Node):
    """Several LoRAs at once, their strengths summing to one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="IntrinsicLabBlendLoRAs",
            display_name="Blend LoRAs",
            category=CATEGORY,
            description=(
                "Applies a list of LoRAs, such as the neighbours that Find Similar LoRAs found, to one MODEL as their weighted mean: the "
                "style of a region of the space instead of a single file's."
            ),
            search_aliases=["merge loras", "average loras", "lora mix", "lora space", "load lora"],
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to apply them to. It is not changed."),
                io.AnyType.Input("lora_names", tooltip="lora_names of Find Similar LoRAs, or lora_name of Draw LoRA Map."),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="Of all together; 1 is one LoRA's worth."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder, for LoRAs that change it too."),
                io.Float.Input(
                    "weights",
                    default=1.0,
                    optional=True,
                    force_input=True,
                    tooltip="scores of Find Similar LoRAs: nearer ones count more. Not connected: all alike. Below 0 counts as 0.",
                ),
            ],
            outputs=[
                io.Model.Output("MODEL", display_name="model", tooltip="The model with the blend."),
                io.Clip.Output("CLIP", display_name="clip", tooltip="The text encoder with the blend; nothing if none was connected."),
            ],
        )

    @classmethod
    def execute(cls, model: list, lora_names: list, strength: list, clip: list | None = None, weights: list | None = None) -> io.NodeOutput:
        from ..methods.lora.lora_file import load_tensors

        names = [name for name in lora_names if name != NONE]
        if not names:
            raise ValueError("No LoRA came to blend: connect lora_names of Find Similar LoRAs, or select a LoRA in Draw LoRA Map.")
        weights = weights or [1.0]
        if len(weights) not in (1, len(names)):
            raise ValueError(f"{len(weights)} weights came for {len(names)} LoRAs: connect the scores of the same search, or none.")
        shares = [max(0.0, float(weight)) for weight in (weights if len(weights) == len(names) else weights * len(names))]
        if sum(shares) == 0:
            raise ValueError("Every weight is 0 or less, so nothing would be blended: these LoRAs are unlike the query.")
        blended, text = model[0], clip[0] if clip else None
        for name, share in zip(names, shares, strict=True):
            lora, _ = load_tensors(lora_path(name))
            own = strength[0] * share / sum(shares)
            before = _changes(blended, text)
            try:
                blended, text = comfy.sd.load_lora_for_models(blended, text, lora, own, own)
            # Core takes it for granted that a file is whole.
            except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{name} is no whole LoRA: ComfyUI's loader stops at {error}. Download it again, or leave it out."
                ) from error
            if _changes(blended, text) == before:
                raise ValueError(f"{name} fits no layer of this MODEL: it was made for another base model; load that, or leave it out.")
        return io.NodeOutput(blended, text)


def _changes(model, clip) -> int:
    """How many changes of layers a MODEL and its CLIP carry."""
    return sum(len(changes) for part in (model, clip and clip.patcher) if part for changes in part.patches.values())


NODES = [IndexLoRAs, FindSimilarLoRAs, FindDuplicateLoRAs, BlendLoRAs]
