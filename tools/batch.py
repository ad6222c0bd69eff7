"""Runs one ComfyUI graph over many pictures, on one or several running ComfyUI servers.

    python batch.py graph_api.json --input photos/ --out maps/ --set 3.strength=0.8
    python batch.py graph_api.json --input photos/ --out maps/ --server http://one:8188 --server http://two:8188

The graph is in API form (ComfyUI: Workflow > Export (API)). Each picture is uploaded, set on the graph's LoadImage node,
run, and what the graph saves comes to OUT/PICTURE/; a graph with a LoadVideo node takes videos likewise. A second run does
only what is missing. For more than a handful of servers: --ray hands the pictures to a Ray cluster, whose workers start their own.
Exit code: 0 all pictures are done, 1 some failed, 2 the batch could not run.
"""

import argparse
import asyncio
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from .batch_jobs import PICTURE_SUFFIXES, VIDEO_SUFFIXES, Job, collect_jobs, is_done
from .batch_pool import run_batch
from .batch_ray import Workers, run_on_ray
from .prompt import BatchError, graph_hash, load_prompt, picture_input, set_input

LOCK_NAME = ".batch.lock"


@contextmanager
def only_batch(out: Path) -> Iterator[None]:
    """Keeps other batches out of a folder while the block runs; the system ends that with the process. Raises BatchError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / LOCK_NAME, timeout=0):
            yield
    except Timeout:
        raise BatchError(f"another batch writes into {out}: wait for it, or give this one a folder of its own.") from None
    except NotImplementedError:
        # A file system without locks.
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line, runs the batch, prints what failed and why; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=Path, metavar="WORKFLOW_API.json")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="NODE is an id or a title; VALUE is JSON, else text"
    )
    parser.add_argument(
        "--input", nargs="+", type=Path, default=[], metavar="FOLDER_OR_FILE", help="without it the graph runs once, as it is"
    )
    parser.add_argument(
        "--input-node", metavar="NODE[.INPUT]", help="what takes the picture or video (default: the only LoadImage or LoadVideo node)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--server", action="append", metavar="URL", help="may be given several times (default: http://127.0.0.1:8188)")
    parser.add_argument(
        "--ray", nargs="?", const="", metavar="ADDRESS", help="run on a Ray cluster instead, which starts the servers (alone: the one here)"
    )
    parser.add_argument("--comfyui", metavar="FOLDER", help="of --ray: where ComfyUI is on its machines (default: COMFYUI_PATH there)")
    parser.add_argument("--comfyui-arguments", default="", metavar="TEXT", help="of --ray: more arguments for its servers")
    parser.add_argument("--cpus", type=float, default=1, metavar="N", help="of --ray: processors of a worker where there is no GPU")
    parser.add_argument("--again", action="store_true", help="also run what is done already")
    options = parser.parse_args(arguments)
    try:
        prompt = load_prompt(options.graph)
        for assignment in options.set:
            set_input(prompt, assignment)
        target = picture_input(prompt, options.input_node) if options.input else None
        suffixes = VIDEO_SUFFIXES if target and prompt[target[0]]["class_type"] == "LoadVideo" else PICTURE_SUFFIXES
        jobs = collect_jobs(options.input, options.out, suffixes) if options.input else [Job(None, options.out)]
        urls = [url.rstrip("/") if "://" in url else f"http://{url.rstrip('/')}" for url in options.server or ["http://127.0.0.1:8188"]]
        graph = graph_hash(prompt, target)
        with only_batch(options.out):
            waiting = [job for job in jobs if options.again or not is_done(job, graph)]
            if not waiting:
                sys.stderr.write(f"All {len(jobs)} are done already in {options.out}.\n")
                return 0
            begun = time.monotonic()
            with tqdm(total=len(jobs), initial=len(jobs) - len(waiting), unit="picture") as bar:
                if options.ray is None:
                    report = asyncio.run(run_batch(prompt, target, waiting, list(dict.fromkeys(urls)), bar))
                else:
                    workers = Workers(options.ray or None, options.comfyui, tuple(shlex.split(options.comfyui_arguments)), options.cpus)
                    report = run_on_ray(prompt, target, waiting, workers, bar)
    except BatchError as error:
        sys.stderr.write(f"batch.py: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Stopped; the same command goes on from here.\n")
        return 130
    rate = 60 * len(report.done) / (time.monotonic() - begun)
    done = len(jobs) - len(waiting) + len(report.done)
    sys.stderr.write(f"{done} of {len(jobs)} done, results in {options.out} ({rate:.1f} a minute).\n")
    for job, reason in report.failed:
        sys.stderr.write(f"failed: {job.picture or options.graph}: {reason}\n")
    if report.left:
        sys.stderr.write(f"{len(report.left)} not run, because no server is left; the same command goes on from here.\n")
    return 1 if report.failed or report.left else 0
