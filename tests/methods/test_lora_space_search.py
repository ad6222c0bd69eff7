"""What the index is for: like LoRAs are found, equal ones are grouped, the shelf is drawn; the same from Qdrant and the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from intrinsic_lab.methods.lora.layers import LoraLayer
from intrinsic_lab.methods.lora.lora_file import kohya_state_dict
from intrinsic_lab.methods.lora_space import clusters, gram, lora_map
from intrinsic_lab.methods.lora_space.__main__ import main
from intrinsic_lab.methods.lora_space.baseline import RawSpace, nearest_raw
from intrinsic_lab.methods.lora_space.clusters import cluster_vectors
from intrinsic_lab.methods.lora_space.duplicates import find_duplicates
from intrinsic_lab.methods.lora_space.gram import exact_cosines
from intrinsic_lab.methods.lora_space.index import LoraIndex
from intrinsic_lab.methods.lora_space.lora_map import draw_map, layout, map_loras
from intrinsic_lab.methods.lora_space.search import find_similar
from intrinsic_lab.methods.lora_space.sketch import KINDS
from intrinsic_lab.methods.lora_space.space import LEAST_FOR_PCA
from intrinsic_lab.tests.methods.lora_space_shelf import MODULES, make_lora, pad_rank, peft_state_dict, refactor, save_lora
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
STYLES = ("ink", "oil", "photo")
FEW = dict(list(MODULES.items())[:3])


# A real server, where there is one; else the client's own local mode.
QDRANT = os.environ.get("INTRINSIC_LAB_QDRANT", ":memory:")


def place(folder, number):
    return folder / STYLES[number % 3] / f"{number}.safetensors"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """24 LoRAs of three styles, each in its style's folder: (folder, database)."""
    folder = tmp_path_factory.mktemp("shelf")
    for number in range(24):
        save_lora(place(folder / "loras", number), make_lora(number, number % 3, rank=(4, 8)[number % 2]))
    with LoraIndex(folder / "index.sqlite") as index:
        index.update([folder / "loras"])
    return folder / "loras", folder / "index.sqlite"


@pytest.fixture
def index(shelf):
    with LoraIndex(shelf[1]) as index:
        yield index


@pytest.mark.parametrize("rerank", [0, 50])
@pytest.mark.parametrize("subnetwork", ["all", "attention", "feed_forward"])
def test_the_nearest_are_those_of_the_same_style(shelf, index, rerank, subnetwork):
    for number in range(3):
        found = find_similar(index, [place(shelf[0], number)], k=7, rerank=rerank, subnetwork=subnetwork)
        assert len(found) == 7 and {match.entry.folder for match in found} == {STYLES[number]}
        assert [match.score for match in found] == sorted((match.score for match in found), reverse=True)
        assert str(place(shelf[0], number)) not in [match.entry.path for match in found]


def test_re_ranked_scores_are_exact_cosines(shelf, index):
    query = place(shelf[0], 0)
    found = find_similar(index, [query], k=5)
    wanted = exact_cosines([query], [match.entry.path for match in found])[0]
    numpy.testing.assert_allclose([match.score for match in found], wanted, atol=1e-9)
    everything = [path for path in sorted(shelf[0].rglob("*.safetensors")) if path != query]
    best = sorted(exact_cosines([query], everything)[0], reverse=True)[:5]
    numpy.testing.assert_allclose([match.score for match in found], best, atol=1e-9)


@pytest.mark.parametrize("rerank", [0, 50])
@pytest.mark.parametrize("change", [refactor, lambda layers: pad_rank(layers, 11)], ids=["B R, R^-1 A", "rank padding"])
def test_other_factors_of_the_same_changes_leave_every_match_and_score_equal_behind_components(tmp_path, change, rerank):
    folder = tmp_path / "loras"
    for number in range(LEAST_FOR_PCA):
        save_lora(folder / f"{number}.safetensors", make_lora(number, number % 3, modules=FEW))
    query = save_lora(tmp_path / "query.safetensors", make_lora(99, 1, modules=FEW))
    same = tmp_path / "same.safetensors"
    save_file(kohya_state_dict(change(make_lora(99, 1, modules=FEW))), same)
    with LoraIndex(tmp_path / "index.sqlite") as index:
        index.update([folder])
        assert index.space("sd1").pca["output"].components is not None
        before, after = (find_similar(index, [path], k=10, rerank=rerank) for path in (query, same))
    assert [match.entry.name for match in after] == [match.entry.name for match in before]
    for kind in ("two_sided", "output", "score"):
        numpy.testing.assert_allclose([getattr(m, kind) for m in after], [getattr(m, kind) for m in before], atol=1e-5)


def test_the_papers_form_may_be_chosen_instead(shelf, index, tmp_path):
    query, everything = place(shelf[0], 1), sorted(shelf[0].rglob("*.safetensors"))
    found = nearest_raw(index, query, k=4)
    space = RawSpace.fit([path for path in everything if path != query])
    cosines = sorted(space.vectors @ space.embed(query), reverse=True)
    numpy.testing.assert_allclose([match.score for match in found], cosines[:4], atol=1e-5)
    assert {match.entry.folder for match in nearest_raw(index, query, k=3, folder="oil")} == {"oil"}
    with pytest.raises(ValueError, match="index at least two"):
        nearest_raw(index, query, folder="nowhere")


def test_a_query_may_lie_outside_the_index(shelf, index, tmp_path):
    new = save_lora(tmp_path / "new.safetensors", make_lora(99, style=1))
    assert {match.entry.folder for match in find_similar(index, [new], k=5)} == {"oil"}
    assert {match.entry.folder for match in find_similar(index, [new], k=5, rerank=0)} == {"oil"}


@pytest.mark.parametrize("rerank", [0, 50])
def test_several_queries_are_a_centroid_and_others_are_taken_away(shelf, index, rerank):
    ink, oil = place(shelf[0], 0), place(shelf[0], 1)
    both = find_similar(index, [ink, oil], k=14, rerank=rerank)
    assert {match.entry.folder for match in both} == {"ink", "oil"}
    less = find_similar(index, [ink, oil], [place(shelf[0], 4)], k=7, rerank=rerank)
    assert {match.entry.folder for match in less} == {"ink"}


def test_an_exact_centroid_score_is_the_cosine_with_the_sum_of_unit_changes(shelf, index):
    like, unlike = [place(shelf[0], 0), place(shelf[0], 1)], [place(shelf[0], 2)]

    def flat(number):
        rank = (4, 8)[number % 2]
        vector = torch.cat(
            [(x.scale * x.up.flatten(1) @ x.down.flatten(1)).flatten() for x in make_lora(number, number % 3, rank).values()]
        )
        return vector.double() / vector.double().norm()

    query = (flat(0) + flat(1)) / 2 - flat(2)
    for match in find_similar(index, like, unlike, k=3):
        wanted = float(flat(int(Path(match.entry.name).stem)) @ query / query.norm())
        assert match.score == pytest.approx(wanted, abs=1e-5)


def test_a_large_query_is_compared_in_parts_and_what_is_fused_adds_up(shelf, tmp_path, monkeypatch):
    paths = sorted(shelf[0].rglob("*.safetensors"))[:5]
    whole = exact_cosines(paths[:2], paths)
    monkeypatch.setattr(gram, "_HELD_NUMBERS", 1)
    numpy.testing.assert_allclose(exact_cosines(paths[:2], paths), whole, rtol=1e-6)
    # qkv as one and to_q once more: ComfyUI adds both.
    torch.manual_seed(0)
    qkv, query = (torch.randn(24, 2), torch.randn(2, 8)), (torch.randn(8, 2), torch.randn(2, 8))
    change = qkv[0] @ qkv[1]
    both = {"double_blocks.0.img_attn.qkv": qkv, "transformer_blocks.0.attn.to_q": query}
    other = change.clone()
    other[:8] += query[0] @ query[1]
    state = {f"{name}.lora_{side}.weight": value for name, (up, down) in both.items() for side, value in (("A", down), ("B", up))}
    save_file(state, tmp_path / "both.safetensors")
    save_file({"double_blocks.0.img_attn.qkv.diff": change}, tmp_path / "change.safetensors")
    paths = [tmp_path / f"{name}.safetensors" for name in ("both", "change")]
    wanted = torch.cosine_similarity(change.flatten(), other.flatten(), dim=0).item()
    numpy.testing.assert_allclose(exact_cosines(paths, paths), [[1, wanted], [wanted, 1]], rtol=1e-5)


def test_a_folder_narrows_the_answer(shelf, index):
    found = find_similar(index, [place(shelf[0], 0)], k=50, folder="oil")
    assert len(found) == 8 and {match.entry.folder for match in found} == {"oil"}


def test_questions_without_an_answer_say_why(shelf, index, tmp_path):
    with pytest.raises(ValueError, match="name at least one"):
        find_similar(index, [])
    with pytest.raises(ValueError, match="only LoRAs of one base model compare"):
        find_similar(index, [place(shelf[0], 0)], family="sdxl")
    with pytest.raises(ValueError, match="has no text_encoder weights"):
        find_similar(index, [place(shelf[0], 0)], subnetwork="text_encoder")
    with pytest.raises(ValueError, match=r"nowhere\.safetensors: it cannot be opened"):
        find_similar(index, [tmp_path / "nowhere.safetensors"])
    other = {"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (8, 2048)}
    wide = save_lora(tmp_path / "wide.safetensors", make_lora(0, modules=other))
    with pytest.raises(ValueError, match=r"must be for one base model: 0.safetensors \(sd1\), wide.safetensors \(sdxl\)"):
        find_similar(index, [place(shelf[0], 0), wide])
    assert find_similar(index, [wide]) == []


def test_a_candidate_that_is_gone_is_no_answer(shelf, tmp_path):
    folder = tmp_path / "loras"
    paths = [save_lora(folder / f"{number}.safetensors", make_lora(number, modules=FEW)) for number in range(5)]
    with LoraIndex(tmp_path / "index.sqlite") as index:
        index.update([folder])
        paths[3].unlink()
        assert {match.entry.name for match in find_similar(index, [paths[0]])} == {f"{number}.safetensors" for number in (1, 2, 4)}


def test_equal_weights_are_grouped_whatever_the_file_looks_like(tmp_path):
    folder, layers = tmp_path / "loras", make_lora(0)
    save_lora(folder / "original.safetensors", layers)
    save_lora(folder / "renamed.safetensors", layers)
    save_lora(folder / "half.safetensors", layers, torch.float16)
    save_lora(folder / "eighth.safetensors", layers, torch.float8_e4m3fn)
    save_lora(folder / "two bits.safetensors", layers, torch.float8_e5m2)
    save_lora(folder / "padded.safetensors", pad_rank(layers, 9))
    save_lora(folder / "refactored.safetensors", refactor(layers))
    save_lora(folder / "weaker.safetensors", {name: LoraLayer(x.down, x.up, x.scale * 0.6) for name, x in layers.items()})
    save_file(peft_state_dict(layers), folder / "peft.safetensors")
    # As like as two trainings of one data set: no copies.
    for number in (1, 2, 3):
        save_lora(folder / f"sister {number}.safetensors", make_lora(number, noise=0.15))
    save_lora(folder / "stranger.safetensors", make_lora(9, style=2))
    with LoraIndex(tmp_path / "index.sqlite") as index:
        index.update([folder])
        (group,) = find_duplicates(index)
    found = {copy.entry.name.removesuffix(".safetensors"): copy for copy in group.copies} | {Path(group.original.name).stem: None}
    assert found.keys() == {"original", "renamed", "half", "eighth", "two bits", "padded", "refactored", "weaker", "peft"}
    assert group.original.dtype == "F32"
    wanted = {"half": "another dtype: F32 -> F16", "eighth": "another dtype: F32 -> F8_E4M3", "padded": "another rank: 4 -> 9"}
    for name, difference in wanted.items():
        assert difference in found[name].differences
    factors = {name: copy.strength for name, copy in found.items() if copy}
    weak = factors.pop("weaker", None)
    assert weak is None or (weak == pytest.approx(0.6, rel=1e-3) and "rescaled: 0.6 times" in found["weaker"].differences[-1])
    assert all(strength == pytest.approx(1, abs=0.01) for strength in factors.values())


def test_groups_come_by_name_whichever_file_was_read_first(tmp_path):
    folder = tmp_path / "loras"
    with LoraIndex(tmp_path / "index.sqlite") as index:
        for style, name in enumerate("cab"):
            for copy in ("", " (1)"):
                save_lora(folder / f"{name}{copy}.safetensors", make_lora(style, style, modules=FEW))
            index.update([folder])
        assert [group.original.name[0] for group in find_duplicates(index)] == ["a", "b", "c"]


def test_a_padded_copy_is_the_copy_even_where_it_is_the_older_file(tmp_path):
    folder, layers = tmp_path / "loras", make_lora(0, modules=FEW)
    padded = save_lora(folder / "a padded.safetensors", pad_rank(layers, 9))
    save_lora(folder / "b.safetensors", layers)
    os.utime(padded, ns=(1, 1))
    with LoraIndex(tmp_path / "index.sqlite") as index:
        index.update([folder])
        (group,) = find_duplicates(index)
    assert group.original.name == "b.safetensors" and group.copies[0].differences == ("another rank: 4 -> 9",)


def test_the_map_puts_styles_apart_and_names_them(index):
    shelf = map_loras(index)
    assert len(shelf.points) == 24 and [cluster.size for cluster in shelf.clusters] == [8, 8, 8]
    for point in shelf.points:
        assert 0 <= point.x <= 1 and 0 <= point.y <= 1
        assert shelf.clusters[point.cluster].label == point.entry.folder
    places = numpy.array([(point.x, point.y) for point in shelf.points])
    labels = numpy.array([point.cluster for point in shelf.points])
    far = numpy.linalg.norm(places[:, None] - places[None], axis=-1)
    same = labels[:, None] == labels[None]
    numpy.fill_diagonal(far, numpy.inf)
    assert numpy.take_along_axis(same, far.argsort(1)[:, :5], 1).all()
    assert json.loads(json.dumps(shelf.as_json()))["clusters"][0]["size"] == 8
    again = map_loras(index)
    assert [(p.x, p.y) for p in again.points] == [(p.x, p.y) for p in shelf.points]


def test_the_picture_shows_every_cluster_in_its_color(index):
    shelf = map_loras(index)
    marked = shelf.points[0]
    picture = draw_map(shelf, size=512)
    assert picture.shape == (512, 512, 3) and picture.dtype == numpy.uint8
    for point in shelf.points:
        wanted = [int(shelf.clusters[point.cluster].color[place : place + 2], 16) for place in (1, 3, 5)]
        found = picture[int(point.y * 512) - 6 : int(point.y * 512) + 7, int(point.x * 512) - 6 : int(point.x * 512) + 7].reshape(-1, 3)
        assert numpy.abs(found - numpy.array(wanted)).sum(1).min() < 30
    assert not numpy.array_equal(draw_map(shelf, size=512, marked=[marked.entry.name]), picture)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_a_shelf_of_few_is_a_map_too(tmp_path, count):
    folder = tmp_path / "loras"
    for number in range(count):
        save_lora(folder / f"{number}.safetensors", make_lora(number % 4, modules=FEW))
    with LoraIndex(tmp_path / "index.sqlite") as index:
        with pytest.raises(ValueError, match="update the index first"):
            map_loras(index)
        index.update([folder])
        shelf = map_loras(index)
        assert len(shelf.points) == count and numpy.isfinite([(point.x, point.y) for point in shelf.points]).all()
        draw_map(shelf, size=128)


def blobs(count, sizes, spread=0.4, seed=0):
    draw = numpy.random.default_rng(seed)
    labels = numpy.repeat(numpy.arange(count), sizes)
    vectors = draw.normal(size=(count, 40))[labels] + spread * draw.normal(size=(len(labels), 40))
    return (vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True)).astype(numpy.float32), labels


def test_as_many_clusters_as_there_are_are_found():
    for count, sizes in ((2, [30, 12]), (5, 20), (12, [15] * 11 + [40])):
        vectors, labels = blobs(count, sizes)
        found = cluster_vectors(vectors)
        assert len(set(zip(found.tolist(), labels.tolist(), strict=True))) == len(set(found.tolist())) == count
        assert (numpy.diff(numpy.bincount(found)) <= 0).all()
    assert set(cluster_vectors(numpy.eye(5, dtype=numpy.float32))) == {0}
    assert len(set(cluster_vectors(vectors, count=3).tolist())) == 3


def test_more_loras_than_landmarks_find_their_places_by_their_neighbours(monkeypatch):
    monkeypatch.setattr(clusters, "LANDMARKS", 60)
    monkeypatch.setattr(lora_map, "LAID_OUT", 60)
    vectors, labels = blobs(4, 50)
    assert len(set(zip(cluster_vectors(vectors).tolist(), labels.tolist(), strict=True))) == 4
    places = layout(vectors)
    centers = numpy.stack([places[labels == label].mean(0) for label in range(4)])
    nearest = numpy.linalg.norm(places[:, None] - centers[None], axis=-1).argmin(1)
    assert (nearest == labels).mean() > 0.98


def test_qdrant_answers_as_memory_does(shelf, index):
    pytest.importorskip("qdrant_client")
    from intrinsic_lab.methods.lora_space.qdrant_store import QdrantStore, connect

    client = connect(QDRANT)
    store = QdrantStore.sync(client, index, "sd1")
    space = index.space("sd1")
    for row in (0, 7, 20):
        query = {kind: space.vectors[kind][row] for kind in KINDS}
        for allowed in (None, space.ids[:9].tolist()):
            wanted, found = space.nearest(query, 5, allowed), store.nearest(query, 5, allowed)
            by_id = {candidate.id: candidate for candidate in wanted}
            assert {candidate.id for candidate in found} <= by_id.keys() and found[0].id == wanted[0].id
            for candidate in found:
                assert candidate.two_sided == pytest.approx(by_id[candidate.id].two_sided, abs=1e-5)
                assert candidate.output == pytest.approx(by_id[candidate.id].output, abs=1e-5)
    query = [place(shelf[0], 1)]
    assert [m.entry.name for m in find_similar(index, query, store=store)] == [m.entry.name for m in find_similar(index, query)]
    with pytest.raises(ValueError, match="sync another"):
        find_similar(index, query, store=store, subnetwork="attention")


def test_qdrant_follows_the_index(tmp_path):
    pytest.importorskip("qdrant_client")
    from intrinsic_lab.methods.lora_space.qdrant_store import QdrantStore, connect

    folder, client, sent = tmp_path / "loras", connect(QDRANT), []
    paths = [save_lora(folder / f"{number}.safetensors", make_lora(number, modules=FEW)) for number in range(6)]
    with LoraIndex(tmp_path / "index.sqlite") as index:
        index.update([folder])
        QdrantStore.sync(client, index, "sd1", report=lambda progress: sent.append(progress.total))
        QdrantStore.sync(client, index, "sd1", report=lambda progress: sent.append(progress.total))
        assert sent == [6]
        paths[0].unlink()
        save_lora(paths[1], make_lora(70, modules=FEW))
        index.update([folder])
        store = QdrantStore.sync(client, index, "sd1", report=lambda progress: sent.append(progress.total))
        assert sent == [6, 1] and client.count(store.collection).count == 5
        space = index.space("sd1")
        row = space.ids.tolist().index(index.entry(paths[1]).id)
        best = store.nearest({kind: space.vectors[kind][row] for kind in KINDS}, 1)[0]
        assert best.id == space.ids[row] and best.score == pytest.approx(1, abs=1e-5)


def test_two_indexes_share_a_qdrant_without_touching_each_other(tmp_path):
    pytest.importorskip("qdrant_client")
    from intrinsic_lab.methods.lora_space.qdrant_store import QdrantStore, connect

    client, stores = connect(QDRANT), []
    for number in range(2):
        folder = tmp_path / f"loras {number}"
        save_lora(folder / "a.safetensors", make_lora(number, modules=FEW))
        with LoraIndex(tmp_path / f"{number}.sqlite") as index:
            index.update([folder])
            stores.append(QdrantStore.sync(client, index, "sd1"))
    assert stores[0].collection != stores[1].collection
    assert [client.count(store.collection).count for store in stores] == [1, 1]


def test_the_command_line_asks_qdrant_or_the_papers_form(shelf, tmp_path, capsys):
    pytest.importorskip("qdrant_client")
    query = ["similar", str(shelf[0]), "--database", str(tmp_path / "i.sqlite"), "--query", os.path.join("ink", "0.safetensors"), "-k", "3"]
    answers = []
    for words in ([], ["--qdrant", str(tmp_path / "qdrant")], ["--embedding", "raw"]):
        assert main([*query, *words]) == 0
        answers.append([match["name"] for match in json.loads(capsys.readouterr().out)["matches"]])
    assert answers[0] == answers[1] and len(answers[2]) == 3
    assert (tmp_path / "qdrant").is_dir()
    assert main([*query, "--embedding", "raw", "--unlike", os.path.join("oil", "1.safetensors")]) == 1
    assert "neither --unlike" in capsys.readouterr().err


def test_the_command_line_answers_in_json(shelf, tmp_path, capsys):
    folder, database = str(shelf[0]), str(tmp_path / "index.sqlite")

    def ask(*words):
        assert main([words[0], folder, "--database", database, *words[1:]]) == 0
        return json.loads(capsys.readouterr().out)

    assert ask("index")["added"] == 24
    assert ask("index")["unchanged"] == 24
    found = ask("similar", "--query", os.path.join("ink", "0.safetensors"), "-k", "3")["matches"]
    assert [Path(match["name"]).parent.name for match in found] == ["ink"] * 3 and found[0]["score"] > 0.3
    assert ask("duplicates") == {"groups": [], "relatives": []}
    answer = ask("map", "--out", str(tmp_path / "map.png"), "--size", "256")
    assert len(answer["points"]) == 24
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_line_says_what_is_wrong(shelf, tmp_path, capsys):
    assert main(["index", str(tmp_path / "nowhere")]) == 1
    assert "is not a folder" in capsys.readouterr().err
    assert main(["similar", str(shelf[0]), "--database", str(tmp_path / "i.sqlite"), "--query", "nowhere"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "error: nowhere: it cannot be opened" in captured.err


def test_the_module_runs_as_a_command(shelf):
    command = [sys.executable, "-m", "intrinsic_lab.methods.lora_space", "duplicates", shelf[0], "--database", shelf[1]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout) == {"groups": [], "relatives": []}, done.stderr
