"""batch.py on a Ray cluster of two nodes on this machine, one of which is killed in the middle."""

import json
import threading

import psutil
import pytest
from intrinsic_lab.tests.server.test_batch import INVERT, assert_inverted, make_pictures, wait_until
from intrinsic_lab.tools.batch import main
from intrinsic_lab.tools.comfyui_source import find_comfyui

ray = pytest.importorskip("ray")


def servers() -> list[psutil.Process]:
    """The ComfyUI servers that Ray's workers have started."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(word.endswith("main.py") for word in words) and any("intrinsic-lab-batch-" in word for word in words):
            found.append(process)
    return found


def test_two_nodes_share_the_pictures_and_one_killed_in_the_middle_loses_none(tmp_path, monkeypatch, capsys):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("COMFYUI_PATH", str(find_comfyui()))
    graph = tmp_path / "invert.json"
    graph.write_text(json.dumps(INVERT), encoding="utf-8")
    pictures, out = make_pictures(tmp_path / "in", 20), tmp_path / "out"
    (tmp_path / "in" / "broken.png").write_bytes(b"this is no picture")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        arguments = [str(graph), "--input", str(tmp_path / "in"), "--out", str(out), "--ray", cluster.address]
        arguments.append("--comfyui-arguments=--disable-all-custom-nodes")
        codes: list[int] = []
        runner = threading.Thread(target=lambda: codes.append(main(arguments)))
        runner.start()
        wait_until(lambda: len(servers()) == 2 and len(list(out.glob("*/inverted.png"))) >= 3, 240)
        assert runner.is_alive()
        cluster.remove_node(second, allow_graceful=False)
        runner.join(timeout=240)
        told = capsys.readouterr().err
        assert codes == [1] and "20 of 21 done" in told and "broken.png: node 1 (LoadImage): " in told
        assert_inverted(out, pictures)
        # Resume: what failed is tried again, what is done stays.
        (out / "picture07" / "inverted.png").unlink()
        written = {name: (out / name / "inverted.png").stat().st_mtime_ns for name in pictures if name != "picture07"}
        (tmp_path / "in" / "broken.png").unlink()
        assert main(arguments) == 0
        assert_inverted(out, pictures)
        assert written == {name: (out / name / "inverted.png").stat().st_mtime_ns for name in written}
    finally:
        cluster.shutdown()
    # A server never outlives its worker, however that ended.
    wait_until(lambda: not servers(), 30)
