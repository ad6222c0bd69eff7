"""Pictures a minute of `batch.py --ray` on local Ray clusters with room for one worker and for two, and of one server without Ray.

    python -m intrinsic_lab.benchmarks.batch_ray [--pictures 40]

The graph is the template "1 Picture to maps" (bundled model), on pictures of room scenes, 256 x 256. Counted from a quarter of the pictures
on, when servers run and models are loaded. OMP_NUM_THREADS=1 for every server: two workers on two cores have one each.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image

from ..scenes import render_scenes
from ..tools.batch import main as batch
from ..tools.batch_jobs import RECORD_NAME
from ..tools.comfyui_server import comfyui_server, device_arguments
from ..tools.comfyui_source import find_comfyui
from ..tools.environment import link_pack
from .measuring import ROOT, keep_result, markdown_table

GRAPH = ROOT / "example_workflows" / "api" / "1 Picture to maps.json"


def saving_graph() -> dict:
    """The template with its four previews saved."""
    graph = json.loads(GRAPH.read_text(encoding="utf-8"))
    for number, node in graph.items():
        if node["class_type"] == "PreviewImage":
            graph[number] = {"class_type": "SaveImage", "inputs": {**node["inputs"], "filename_prefix": f"map{number}"}}
    return graph


def rate(out: Path) -> float:
    """Pictures a minute, from a quarter of them on."""
    times = sorted(path.stat().st_mtime for path in out.rglob(RECORD_NAME))
    first = len(times) // 4
    return 60 * (len(times) - 1 - first) / (times[-1] - times[first])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=40)
    options = parser.parse_args(arguments)
    os.environ |= {"OMP_NUM_THREADS": "1", "COMFYUI_PATH": str(find_comfyui())}
    from ray.cluster_utils import Cluster

    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        (top / "in").mkdir()
        pictures = render_scenes(list(range(options.pictures)), height=256, width=256).image_bhwc
        for number, picture in enumerate((pictures * 255).round().byte().numpy()):
            Image.fromarray(picture).save(top / "in" / f"{number}.png")
        base = link_pack(top / "base")
        graph = top / "graph.json"
        graph.write_text(json.dumps(saving_graph()))

        def run(name: str, *words: str) -> None:
            code = batch([str(graph), "--input", str(top / "in"), "--out", str(top / name), *words])
            if code:
                raise SystemExit(f"{name}: batch.py ended with {code}")
            rates[name] = rate(top / name)

        with comfyui_server(Path(sys.executable), Path(os.environ["COMFYUI_PATH"]), base, device_arguments()) as server:
            run("one server", "--server", server.url)
        for count in (1, 2):
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": count, "include_dashboard": False})
            try:
                run(f"Ray, {count} worker{'s' * (count > 1)}", "--ray", cluster.address, f"--comfyui-arguments=--base-directory {base}")
            finally:
                cluster.shutdown()
    table = markdown_table(("way", "pictures a minute"), [(name, f"{found:.1f}") for name, found in rates.items()])
    keep_result("batch_ray", table, {"pictures": options.pictures, "load": os.getloadavg()[0], "rates": rates})


if __name__ == "__main__":
    main()
