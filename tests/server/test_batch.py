"""batch.py against real ComfyUI servers, with core's own nodes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import aiohttp
import av
import numpy as np
import pytest
from aiohttp import web
from intrinsic_lab.tools.batch import LOCK_NAME, main, only_batch
from intrinsic_lab.tools.comfyui_server import comfyui_server
from intrinsic_lab.tools.comfyui_source import find_comfyui
from intrinsic_lab.tools.environment import link_pack
from intrinsic_lab.tools.prompt import BatchError, picture_input
from PIL import Image

INVERT = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "none.png"}},
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "inverted"}, "_meta": {"title": "Keep"}},
}


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "invert.json"
    path.write_text(json.dumps(INVERT), encoding="utf-8")
    return path


def make_pictures(folder: Path, count: int) -> dict[str, np.ndarray]:
    """`count` small pictures, each of another colour, as name -> pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for number in range(count):
        pixels = np.full((16, 24, 3), (7 * number % 256, 11 * number % 256, 200), np.uint8)
        Image.fromarray(pixels).save(folder / f"picture{number:02}.png")
        pictures[f"picture{number:02}"] = pixels
    return pictures


def assert_inverted(out: Path, pictures: dict[str, np.ndarray]) -> None:
    for name, pixels in pictures.items():
        result = np.asarray(Image.open(out / name / "inverted.png"))
        # SaveImage cuts off instead of rounding.
        np.testing.assert_allclose(result, 255 - pixels, atol=1)


def test_every_picture_of_a_folder_comes_back_as_the_graph_made_it(server, graph, tmp_path):
    pictures = make_pictures(tmp_path / "in", 3)
    assert main([str(graph), "--input", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--server", server.url]) == 0
    assert_inverted(tmp_path / "out", pictures)
    assert not list((tmp_path / "out").rglob(".part-*"))


def test_it_runs_straight_from_the_packs_folder(server, graph, tmp_path):
    make_pictures(tmp_path / "in", 1)
    script = Path(__file__).resolve().parents[2] / "batch.py"
    command = [sys.executable, script, graph, "--input", tmp_path / "in", "--out", tmp_path / "out", "--server", server.url]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "picture00" / "inverted.png").is_file()


def test_inputs_are_set_by_node_id_and_by_title(server, graph, tmp_path):
    make_pictures(tmp_path / "in", 1)
    arguments = [str(graph), "--input", str(tmp_path / "in" / "picture00.png"), "--out", str(tmp_path / "out"), "--server", server.url]
    assert main([*arguments, "--set", "Keep.filename_prefix=sub/other"]) == 0
    assert (tmp_path / "out" / "picture00" / "other.png").is_file()
    assert main([*arguments, "--set", "3.filename_prefix=third"]) == 0
    assert (tmp_path / "out" / "picture00" / "third.png").is_file()


def test_a_corrupt_picture_is_reported_with_comfyuis_reason_and_the_rest_goes_on(server, graph, tmp_path, capsys):
    pictures = make_pictures(tmp_path / "in", 2)
    (tmp_path / "in" / "broken.png").write_bytes(b"this is no picture")
    assert main([str(graph), "--input", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--server", server.url]) == 1
    told = capsys.readouterr().err
    assert "broken.png: node 1 (LoadImage): " in told and "2 of 3 done" in told
    assert_inverted(tmp_path / "out", pictures)


def test_a_refused_graph_is_reported_with_the_refusing_nodes_own_words(server, graph, tmp_path, capsys):
    make_pictures(tmp_path / "in", 1)
    scaled = json.loads(json.dumps(INVERT))
    scaled["2"] = {
        "class_type": "ImageScale",
        "inputs": {"image": ["1", 0], "upscale_method": "by magic", "width": 8, "height": 8, "crop": "disabled"},
    }
    graph.write_text(json.dumps(scaled), encoding="utf-8")
    assert main([str(graph), "--input", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--server", server.url]) == 1
    told = capsys.readouterr().err
    assert "node 2 (ImageScale): Value not in list: upscale_method: 'by magic'" in told


@pytest.mark.skipif(os.name == "nt", reason="needs a limit on files")
def test_a_full_disk_ends_the_batch_in_words_and_the_same_command_goes_on_later(server, graph, tmp_path):
    """A limit on the size of files stands in for the disk."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(noise).save(tmp_path / "in" / "noise.png")
    script = Path(__file__).resolve().parents[2] / "batch.py"
    command = [sys.executable, script, graph, "--input", tmp_path / "in", "--out", tmp_path / "out", "--server", server.url]
    limited = subprocess.run(["bash", "-c", 'ulimit -f 1; exec "$0" "$@"', *command], capture_output=True, text=True, check=False)
    assert limited.returncode == 2 and "Traceback" not in limited.stderr, limited.stderr
    assert "the results of" in limited.stderr and "cannot be written: " in limited.stderr
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == [LOCK_NAME]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert_inverted(tmp_path / "out", {"noise": noise})


def test_a_second_run_does_only_what_is_missing(server, graph, tmp_path, capsys):
    pictures = make_pictures(tmp_path / "in", 3)
    arguments = [str(graph), "--input", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--server", server.url]
    assert main(arguments) == 0
    written = {name: (tmp_path / "out" / name / "inverted.png").stat().st_mtime_ns for name in pictures}
    (tmp_path / "out" / "picture01" / "inverted.png").unlink()
    assert main(arguments) == 0
    again = {name: (tmp_path / "out" / name / "inverted.png").stat().st_mtime_ns for name in pictures}
    assert [name for name in pictures if written[name] != again[name]] == ["picture01"]
    capsys.readouterr()
    assert main(arguments) == 0
    assert "All 3 are done already" in capsys.readouterr().err


def test_a_changed_graph_or_picture_is_run_again(server, graph, tmp_path):
    make_pictures(tmp_path / "in", 1)
    arguments = [str(graph), "--input", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--server", server.url]
    assert main(arguments) == 0
    assert main([*arguments, "--set", "3.filename_prefix=renamed"]) == 0
    assert (tmp_path / "out" / "picture00" / "renamed.png").is_file()
    Image.new("RGB", (16, 24), (10, 20, 30)).save(tmp_path / "in" / "picture00.png")
    assert main(arguments) == 0
    assert Image.open(tmp_path / "out" / "picture00" / "inverted.png").getpixel((0, 0)) == pytest.approx((245, 235, 225), abs=1)


def test_a_dead_servers_share_goes_to_the_other(server, graph, tmp_path, capsys):
    pictures = make_pictures(tmp_path / "in", 30)
    base = link_pack(tmp_path / "second")
    with comfyui_server(Path(sys.executable), find_comfyui(), base, ["--cpu", "--disable-all-custom-nodes"]) as second:
        codes: list[int] = []
        arguments = [str(graph), "--input", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--server", server.url]
        runner = threading.Thread(target=lambda: codes.append(main([*arguments, "--server", second.url])))
        runner.start()
        # Frozen after its first picture, the second server sits on another one; then it dies with it.
        wait_until(lambda: list((base / "output").glob("*.png")))
        os.killpg(second.process.pid, signal.SIGSTOP)
        wait_until(lambda: len(list((tmp_path / "out").glob("*/inverted.png"))) >= 20)
        assert runner.is_alive()
        os.killpg(second.process.pid, signal.SIGKILL)
        runner.join(timeout=60)
    assert codes == [0]
    assert f"{second.url} is gone" in capsys.readouterr().err
    assert_inverted(tmp_path / "out", pictures)


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


class OddServers:
    """Where HTTP servers stand that are not quite a ComfyUI."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def start(self, answer) -> str:
        """answer: a coroutine, from a request to its response. Returns the URL."""

        async def listen() -> str:
            application = web.Application(client_max_size=2**26)
            application.router.add_route("*", "/{path:.*}", answer)
            runner = web.AppRunner(application, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            return f"http://127.0.0.1:{runner.addresses[0][1]}"

        return asyncio.run_coroutine_threadsafe(listen(), self.loop).result(10)


@pytest.fixture(scope="module")
def odd_servers():
    return OddServers()


def odd(kind: str, asked: list[str]):
    """One that says it is a ComfyUI and takes pictures, and then does as `kind` says."""

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        if request.path == "/system_stats":
            return web.json_response({"system": {}})
        if request.path == "/ws":
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            # Whoever was started anew closes; the others listen.
            await socket.close() if kind == "forgets" else await socket.receive()
            return socket
        if kind == "500":
            return web.Response(status=500, text="Internal error")
        if request.path == "/upload/image":
            return web.json_response({"name": "x.png", "subfolder": "batch"})
        if kind == "HTML":
            return web.Response(text="<html>Please log in</html>", content_type="text/html")
        if kind == "malformed":
            return web.Response(text='{"prompt_id": ', content_type="application/json")
        if kind == "refuses":
            error = {"type": "invalid_prompt", "message": "Cannot execute because node ImageInvert does not exist."}
            return web.json_response({"error": error, "node_errors": {}}, status=400)
        return web.json_response({"prompt_id": "1"} if request.path == "/prompt" else {})

    return answer


@pytest.mark.parametrize("kind", ["500", "HTML", "malformed", "refuses", "forgets"])
def test_a_server_that_fails_is_set_aside_and_its_pictures_go_to_the_healthy_one(server, odd_servers, graph, tmp_path, capsys, kind):
    pictures, asked = make_pictures(tmp_path / "in", 12), []
    bad = odd_servers.start(odd(kind, asked))
    arguments = [str(graph), "--input", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--server", bad, "--server", server.url]
    assert main(arguments) == 0
    assert_inverted(tmp_path / "out", pictures)
    tried = asked.count("/upload/image")
    # The healthy one may be so quick that nothing is left for a third failure.
    assert 1 <= tried <= 3
    assert (f"{bad} failed 3 times in a row and gets no more pictures" in capsys.readouterr().err) == (tried == 3)


def test_alone_a_faulty_server_ends_the_batch_after_a_few_failures(odd_servers, graph, tmp_path, capsys):
    make_pictures(tmp_path / "in", 8)
    bad = odd_servers.start(odd("HTML", []))
    assert main([str(graph), "--input", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--server", bad]) == 1
    told = capsys.readouterr().err
    assert "0 of 8 done" in told and "8 not run" in told and "/prompt of" in told and "(text/html): <html>Please log in</html>" in told


def test_a_dropped_connection_is_made_anew_and_the_running_prompt_found(server, odd_servers, graph, tmp_path):
    """Through a proxy that cuts the websocket once for each prompt."""
    pictures, queued, cut = make_pictures(tmp_path / "in", 2), [], []

    async def proxy(request: web.Request) -> web.StreamResponse:
        async with aiohttp.ClientSession() as session:
            if request.path == "/ws":
                socket = web.WebSocketResponse()
                await socket.prepare(request)
                async with session.ws_connect(f"{server.url}{request.path_qs}") as upstream:
                    async for message in upstream:
                        if len(queued) > len(cut):
                            cut.append(request.query["clientId"])
                            break
                        await (socket.send_str if message.type == aiohttp.WSMsgType.TEXT else socket.send_bytes)(message.data)
                await socket.close()
                return socket
            kind = {"Content-Type": request.headers.get("Content-Type", "")}
            body = await request.read()
            async with session.request(request.method, f"{server.url}{request.path_qs}", data=body, headers=kind) as answer:
                if request.path == "/prompt":
                    queued.append(await answer.json())
                return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)

    url = odd_servers.start(proxy)
    assert main([str(graph), "--input", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--server", url]) == 0
    assert_inverted(tmp_path / "out", pictures)
    assert len(queued) == 2 and len(set(cut)) >= 1


def test_a_second_batch_into_one_folder_is_refused_until_the_first_has_ended(server, graph, tmp_path, capsys):
    make_pictures(tmp_path / "in", 1)
    arguments = [str(graph), "--input", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--server", server.url]
    with only_batch(tmp_path / "out"):
        assert main(arguments) == 2
    assert "another batch writes into" in capsys.readouterr().err and not list((tmp_path / "out").glob("*/*"))
    assert main(arguments) == 0


def test_a_result_that_was_cut_is_not_done(server, graph, tmp_path):
    pictures = make_pictures(tmp_path / "in", 1)
    arguments = [str(graph), "--input", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--server", server.url]
    assert main(arguments) == 0
    for kept in (0, 20):
        os.truncate(tmp_path / "out/picture00/inverted.png", kept)
        assert main(arguments) == 0
        assert_inverted(tmp_path / "out", pictures)


def test_without_a_server_it_says_so_and_ends_with_2(graph, tmp_path, capsys):
    make_pictures(tmp_path / "in", 1)
    assert main([str(graph), "--input", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--server", "127.0.0.1:9"]) == 2
    assert "no ComfyUI answers at http://127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "9.image=x"], "no node has the id or title '9'; the graph's nodes are: 1 (LoadImage)"),
        (["--set", "Keep.prefix=x"], "has no input 'prefix'; it has: images, filename_prefix"),
        (["--set", "nonsense"], "is not of the form NODE.INPUT=VALUE"),
        (["--input-node", "3"], "node 3 has no input 'image'"),
        (["--input", "nowhere"], "nowhere does not exist"),
    ],
)
def test_a_wrong_argument_ends_with_2_and_says_what_is_right(graph, tmp_path, capsys, arguments, said):
    make_pictures(tmp_path / "in", 1)
    assert main([str(graph), "--input", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_graph_in_editor_form_is_refused_with_the_way_to_its_api_form(graph, tmp_path, capsys):
    graph.write_text(json.dumps({"nodes": [], "links": []}), encoding="utf-8")
    assert main([str(graph), "--out", str(tmp_path / "out")]) == 2
    assert "Export (API)" in capsys.readouterr().err


def test_a_picture_takes_the_place_of_a_rendered_scene_and_an_unused_load_image_is_left_alone():
    unused = {"class_type": "LoadImage", "inputs": {"image": "example.png"}, "_meta": {"title": "Load Image (your own)"}}
    scene = {"class_type": "IntrinsicLabRenderScene", "inputs": {"seed": 1}, "_meta": {"title": "Render Scene"}}
    save = {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}, "_meta": {"title": "Save"}}
    prompt = {"1": unused, "2": scene, "3": save}
    assert picture_input(prompt, None) == ("2", "image")
    assert prompt["2"]["class_type"] == "LoadImage" and set(prompt["2"]["inputs"]) == {"image"}


def test_a_scene_whose_exact_maps_are_used_is_not_replaced():
    scene = {"class_type": "IntrinsicLabRenderScene", "inputs": {"seed": 1}, "_meta": {"title": "Render Scene"}}
    compare = {
        "class_type": "IntrinsicLabCompareMaps",
        "inputs": {"prediction": ["1", 0], "reference": ["1", 3]},
        "_meta": {"title": "Compare"},
    }
    with pytest.raises(BatchError, match="uses 0 nodes of LoadImage and LoadVideo"):
        picture_input({"1": scene, "2": compare}, None)


def test_a_folder_of_videos_takes_the_place_of_the_camera_move_and_goes_on_where_it_stopped(server, tmp_path, capsys):
    prompt = {
        "1": {"class_type": "IntrinsicLabRenderCameraMove", "inputs": {"seed": 1}},
        "2": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": 12}},
        "3": {"class_type": "GetVideoComponents", "inputs": {"video": ["2", 0]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "frame"}},
    }
    path, videos, out = tmp_path / "graph.json", tmp_path / "videos", tmp_path / "out"
    path.write_text(json.dumps(prompt))
    assert picture_input(prompt, None) == ("2", "file") and prompt["2"]["class_type"] == "LoadVideo"
    videos.mkdir()
    for name, level in (("dark", 40), ("bright", 200)):
        with av.open(videos / f"{name}.mp4", "w") as file:
            stream = file.add_stream("h264", rate=12)
            stream.width = stream.height = 64
            for _ in range(3):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), level, np.uint8), "rgb24")))
            file.mux(stream.encode())
    (videos / "notes.png").write_bytes(b"no video")
    arguments = [str(path), "--input", str(videos), "--out", str(out), "--server", server.url]
    assert main(arguments) == 0 and "2 of 2 done" in capsys.readouterr().err
    for name, level in (("dark", 40), ("bright", 200)):
        frames = sorted((out / name).glob("*.png"))
        assert len(frames) == 3 and abs(np.asarray(Image.open(frames[2])).mean() - level) < 6
    (out / "dark" / "frame.png").unlink()
    kept = (out / "bright" / "frame.png").stat().st_mtime_ns
    assert main(arguments) == 0 and "2 of 2 done" in capsys.readouterr().err
    assert (out / "dark" / "frame.png").is_file() and (out / "bright" / "frame.png").stat().st_mtime_ns == kept
    assert main(arguments) == 0 and "All 2 are done already" in capsys.readouterr().err
