"""The jobs of a batch on a Ray cluster: each worker has a ComfyUI server of its own, Ray hands out the pictures and tries again.

A picture's content goes to a worker and its results come back, so that the machines need share no folder. What is needed on each
machine: ComfyUI (COMFYUI_PATH, or the same folder as here), its Python, Ray in it. Needs ray: `pip install "ray>=2.9"`.
"""

import asyncio
import logging
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from tqdm import tqdm

from . import batch_jobs, batch_pool, comfyui_client, comfyui_server, comfyui_source, console, prompt
from .batch_jobs import Job, Report, keep_results, read_picture, record_of, results_of
from .comfyui_client import PictureFailed, Server
from .comfyui_server import comfyui_server as running_server
from .comfyui_source import find_comfyui
from .console import WorkbenchError
from .prompt import BatchError, Prompt, graph_hash

# Pictures handed out at once for each worker: one runs, one waits there.
AHEAD = 2
# Times that Ray runs a picture again, elsewhere if it must, after a worker or a machine is gone or its server fails.
RETRIES = 3


@dataclass(frozen=True)
class Workers:
    """How a worker runs. comfyui: ComfyUI's folder there; None: as `find_comfyui` finds it. cpus: of a worker where there is no GPU."""

    address: str | None = None
    comfyui: str | None = None
    arguments: tuple[str, ...] = ()
    cpus: float = 1


@dataclass(frozen=True)
class Outcome:
    """What a worker sends back: a picture's results, or why there are none; server: process and machine that ran it."""

    results: list[tuple[str, bytes]]
    failure: str
    seconds: float
    server: str


class OwnServer:
    """A ComfyUI of this process, started once and ended with it, with folders of its own for what it writes."""

    started: "OwnServer | None" = None

    def __init__(self, comfyui: str | None, arguments: tuple[str, ...]) -> None:
        found = Path(comfyui) if comfyui else find_comfyui()
        if found is None:
            raise WorkbenchError("there is no ComfyUI on this machine.", "set COMFYUI_PATH there, or give --comfyui.")
        self._folder = tempfile.TemporaryDirectory(prefix="intrinsic-lab-batch-")
        base = Path(self._folder.name)
        for name in ("input", "output", "user"):
            (base / name).mkdir()
        # Models, packs and inputs are the user's; what is written is ours.
        options = ["--base-directory", str(found), "--input-directory", str(found / "input"), *comfyui_server.device_arguments()]
        self._context = running_server(Path(sys.executable), found, base, [*options, *arguments], outlived=False)
        self.url = self._context.__enter__().url

    def stop(self) -> None:
        """Perhaps the server is beyond help: the next picture gets a fresh one."""
        OwnServer.started = None
        self._context.__exit__(None, None, None)
        self._folder.cleanup()

    @classmethod
    def get(cls, comfyui: str | None, arguments: tuple[str, ...]) -> "OwnServer":
        """The one of this process."""
        if cls.started is None:
            cls.started = cls(comfyui, arguments)
        return cls.started


def run_picture(graph: Prompt, target: tuple[str, str] | None, picture: tuple[bytes, str] | None, workers: Workers) -> Outcome:
    """Runs in a worker: one picture on the worker's own server. Raises for what another try may mend."""
    start = time.monotonic()

    async def run(url: str) -> list[tuple[str, bytes]]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=600)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            return await results_of(Server(session, url), graph, target, picture, lambda _text: None)

    own = OwnServer.get(workers.comfyui, workers.arguments)
    try:
        results, failure = asyncio.run(run(own.url)), ""
    except PictureFailed as error:
        results, failure = [], str(error)
    except BaseException:
        own.stop()
        raise
    return Outcome(results, failure, time.monotonic() - start, own.url)


def run_on_ray(graph: Prompt, target: tuple[str, str] | None, jobs: Iterable[Job], workers: Workers, bar: tqdm) -> Report:
    """Runs all jobs on the cluster. Raises BatchError if there is none, or ComfyUI does not start there."""
    try:
        import ray
    except ImportError as error:
        raise BatchError(f'--ray needs ray, which is not installed ({error}): run `pip install "ray>=2.9"`.') from None
    # What the workers run travels with the work: they need none of this pack.
    for module in (sys.modules[__name__], batch_jobs, batch_pool, comfyui_client, comfyui_server, comfyui_source, console, prompt):
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        ray.init(address=workers.address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise BatchError(f"Ray does not start or answer: {str(error).splitlines()[0]}") from error
    report, waiting = Report(), list(jobs)[::-1]
    running: dict[Any, tuple[Job, dict]] = {}
    try:
        resources = ray.cluster_resources()
        needs = {"num_gpus": 1, "num_cpus": 0} if resources.get("GPU") else {"num_cpus": workers.cpus}
        task = ray.remote(**needs, max_retries=RETRIES, retry_exceptions=True)(run_picture)
        shared = ray.put(graph)
        while waiting or running:
            while waiting and len(running) < AHEAD * _slots(ray, workers):
                job = waiting.pop()
                try:
                    record, picture = record_of(job, graph_hash(graph, target)), read_picture(job)
                except (PictureFailed, OSError) as error:
                    _failed(report, job, str(error), bar)
                    continue
                running[task.remote(shared, target, picture, workers)] = (job, record)
            ready, _ = ray.wait(list(running), timeout=1)
            for reference in ready:
                job, record = running.pop(reference)
                try:
                    outcome = ray.get(reference)
                except ray.exceptions.RayError as error:
                    reason = _reason(error)
                    _failed(report, job, reason, bar)
                    if len(report.failed) >= batch_pool.MOST_FAILURES and not report.done:
                        raise BatchError(f"no picture runs on the cluster: {reason}") from None
                    continue
                if outcome.failure:
                    _failed(report, job, outcome.failure, bar)
                    continue
                keep_results(job, record, outcome.results, outcome.seconds)
                report.done.append(job)
                bar.set_postfix_str(outcome.server)
                bar.update()
    finally:
        ray.shutdown()
    return report


def _slots(ray, workers: Workers) -> int:
    """How many workers the cluster has room for now: machines come and go."""
    resources = ray.cluster_resources()
    return max(1, int(resources.get("GPU") or resources.get("CPU", 0) / workers.cpus))


def _failed(report: Report, job: Job, reason: str, bar: tqdm) -> None:
    report.failed.append((job, reason))
    bar.write(f"{job}: {reason}", file=sys.stderr)
    bar.update()


def _reason(error: Exception) -> str:
    """What a worker raised, without Ray's traceback."""
    cause = getattr(error, "cause", None) or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]
