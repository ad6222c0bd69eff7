"""Runs one ComfyUI graph over many pictures, on one or several running ComfyUI servers.

    python batch.py graph_api.json --input photos/ --out maps/ --set 3.strength=0.8
    python batch.py graph_api.json --input photos/ --out maps/ --server http://one:8188 --server http://two:8188

The graph is in API form (ComfyUI: Workflow > Export (API)). Each picture is uploaded, set on the graph's LoadImage node,
run, and what the graph saves comes to OUT/PICTURE/; a graph with a LoadVideo node takes videos likewise. A second run does
only what is missing. Exit code: 0 all pictures are done, 1 some failed, 2 the batch could not run.
"""

import argparse
import asyncio
import json
import os
import re
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from tqdm import tqdm

from .comfyui_client import PictureFailed, Server, ServerLost
from .prompt import BatchError, Prompt, graph_hash, load_prompt, picture_input, set_input

VIDEO_SUFFIXES = {".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v"}
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".exr"}
RECORD_NAME = ".done.json"
MOST_ATTEMPTS = 2


@dataclass
class Job:
    """One picture (None: run the graph as it is) and the folder of its results."""

    picture: Path | None
    folder: Path
    attempts: int = 0


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that it is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as part:
        try:
            part.write(content)
            part.flush()
            os.fsync(part.fileno())
            part.close()
            os.chmod(part.name, 0o644)
            os.replace(part.name, path)
        except BaseException:
            part.close()
            Path(part.name).unlink(missing_ok=True)
            raise


def collect_jobs(inputs: Sequence[Path], out: Path, suffixes: Collection[str] = PICTURE_SUFFIXES) -> list[Job]:
    """A job per picture (suffixes: or video): each file given, and all below each folder given. Raises BatchError if one is missing."""
    found: list[tuple[Path, Path]] = []
    for given in inputs:
        if given.is_dir():
            below = sorted(path for path in given.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
            # Hidden ones are no pictures of their own: macOS keeps ._photo.jpg beside photo.jpg.
            below = [path for path in below if not any(part.startswith(".") for part in path.relative_to(given).parts)]
            found += [(path, path.relative_to(given)) for path in below if out.resolve() not in path.resolve().parents]
        elif given.is_file():
            found.append((given, Path(given.name)))
        else:
            raise BatchError(f"--input {given} does not exist.")
    if not found:
        raise BatchError(f"nothing to run on in {', '.join(map(str, inputs))}: looked for {', '.join(sorted(suffixes))}.")
    jobs: dict[str, Job] = {}
    for picture, name in found:
        # photo.jpg -> photo/; a second photo.png -> photo.png/, a third one -> photo.png_2/
        choices = [out / name.with_suffix(""), out / name, *(out / f"{name}_{number}" for number in range(2, len(found) + 2))]
        # Where case does not count, Photo/ and photo/ are one folder.
        folder = next(choice for choice in choices if str(choice).casefold() not in jobs)
        jobs[str(folder).casefold()] = Job(picture, folder)
    return list(jobs.values())


def _record_of(job: Job, graph: str) -> dict:
    if job.picture is None:
        return {"graph": graph, "picture": None}
    about = job.picture.stat()
    return {"graph": graph, "picture": {"name": job.picture.name, "bytes": about.st_size, "modified_ns": about.st_mtime_ns}}


def is_done(job: Job, graph: str) -> bool:
    """Whether the job's record says that this graph ran on this picture, and its files are still there."""
    kept = job.folder / RECORD_NAME
    try:
        record = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else None
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(record, dict):
        return False
    files = record.pop("files", None)
    if not isinstance(files, list) or not files or not all(isinstance(name, str) for name in files):
        return False
    record.pop("seconds", None)
    # A result that was cut to nothing is none.
    return record == _record_of(job, graph) and all((path := job.folder / name).is_file() and path.stat().st_size for name in files)


async def run_job(server: Server, prompt: Prompt, target: tuple[str, str] | None, job: Job, progress: Callable[[str], None]) -> list[Path]:
    """Runs the graph for one job on one server and returns the files written. Raises PictureFailed."""
    start = time.monotonic()
    nodes = {node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in prompt.items()}
    if target and job.picture:
        nodes[target[0]]["inputs"][target[1]] = await server.upload(job.picture)
    record = _record_of(job, graph_hash(prompt, target))
    outputs = await server.run(nodes, progress)
    files = [
        entry
        for node in outputs.values()
        for entries in node.values()
        if isinstance(entries, list)
        for entry in entries
        if isinstance(entry, dict) and entry.get("type") == "output" and entry.get("filename")
    ]
    if not files:
        raise PictureFailed("the graph saved no file: it needs a node such as Save Image")
    written: dict[str, Path] = {}
    for file in files:
        stem, suffix = os.path.splitext(Path(file["filename"]).name)
        # ComfyUI numbers its files (normal_00001_.png); here each picture has a folder, so the number goes.
        stem = re.sub(r"_\d{5,}_?$", "", stem)
        name = next(n for n in (f"{stem}{suffix}", *(f"{stem}_{i}{suffix}" for i in range(2, len(files) + 2))) if n not in written)
        written[name] = job.folder / name
        write_atomically(written[name], await server.download(file))
    record |= {"files": list(written), "seconds": round(time.monotonic() - start, 2)}
    write_atomically(job.folder / RECORD_NAME, json.dumps(record, indent=1).encode())
    return list(written.values())


@dataclass
class Pot:
    """The jobs still to do. A job that was handed out counts until it is finished, because a dead server's comes back."""

    waiting: deque[Job]
    in_flight: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def take(self) -> Job | None:
        """The next job; None when nothing is left and nothing can come back."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.waiting or not self.in_flight)
            if not self.waiting:
                return None
            self.in_flight += 1
            return self.waiting.popleft()

    async def settle(self, again: Job | None = None) -> None:
        """Ends a job that was taken; `again` goes back into the pot."""
        async with self.changed:
            self.in_flight -= 1
            if again:
                self.waiting.append(again)
            self.changed.notify_all()


@dataclass
class Report:
    """What became of the jobs."""

    done: list[Job] = field(default_factory=list)
    failed: list[tuple[Job, str]] = field(default_factory=list)
    left: list[Job] = field(default_factory=list)


async def run_batch(prompt: Prompt, target: tuple[str, str] | None, jobs: Iterable[Job], urls: Sequence[str], bar: tqdm) -> Report:
    """Runs all jobs on the servers that answer. Raises BatchError if none does."""
    report, pot = Report(), Pot(deque(jobs))
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=600)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        servers = [Server(session, url) for url in urls]
        answers = await asyncio.gather(*(server.is_alive() for server in servers))
        for server, alive in zip(servers, answers, strict=True):
            if not alive:
                bar.write(f"{server.url} does not answer: it gets no pictures", file=sys.stderr)
        alive = [server for server, answer in zip(servers, answers, strict=True) if answer]
        if not alive:
            raise BatchError(f"no ComfyUI answers at {', '.join(urls)}: start one, or name it with --server.")
        await asyncio.gather(*(_work(server, prompt, target, pot, report, bar) for server in alive))
    report.left = list(pot.waiting)
    return report


async def _work(server: Server, prompt: Prompt, target: tuple[str, str] | None, pot: Pot, report: Report, bar: tqdm) -> None:
    """Takes jobs until none is left or the server is gone."""
    while job := await pot.take():
        name, again, lost = job.picture or job.folder, None, False
        try:
            await run_job(server, prompt, target, job, lambda text: bar.set_postfix_str(text))
            report.done.append(job)
        except PictureFailed as error:
            report.failed.append((job, str(error)))
            bar.write(f"{name}: {error}", file=sys.stderr)
        except (ServerLost, aiohttp.ClientError, TimeoutError, asyncio.TimeoutError, ConnectionError) as error:
            lost = not await server.is_alive()
            job.attempts += 1
            if job.attempts < MOST_ATTEMPTS:
                again = job
            else:
                # A picture that takes a server down with it must not go round all of them.
                report.failed.append((job, f"the connection was lost {job.attempts} times while it ran: {error}"))
            if lost:
                bar.write(f"{server.url} is gone ({error}): its pictures go to the others", file=sys.stderr)
        except OSError as error:
            raise BatchError(f"the results of {name} cannot be written: {error}") from error
        finally:
            await pot.settle(again)
        bar.update(0 if again else 1)
        if lost:
            return


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
        waiting = [job for job in jobs if options.again or not is_done(job, graph)]
        if not waiting:
            sys.stderr.write(f"All {len(jobs)} are done already in {options.out}.\n")
            return 0
        with tqdm(total=len(jobs), initial=len(jobs) - len(waiting), unit="picture") as bar:
            report = asyncio.run(run_batch(prompt, target, waiting, list(dict.fromkeys(urls)), bar))
    except BatchError as error:
        sys.stderr.write(f"batch.py: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Stopped; the same command goes on from here.\n")
        return 130
    sys.stderr.write(f"{len(jobs) - len(waiting) + len(report.done)} of {len(jobs)} done, results in {options.out}.\n")
    for job, reason in report.failed:
        sys.stderr.write(f"failed: {job.picture or options.graph}: {reason}\n")
    if report.left:
        sys.stderr.write(f"{len(report.left)} not run, because no server is left; the same command goes on from here.\n")
    return 1 if report.failed or report.left else 0
