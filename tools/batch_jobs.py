"""The pictures of a batch: which there are, which are done, and what keeps their results."""

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .comfyui_client import PictureFailed, Server, ServerFaulty
from .prompt import BatchError, Prompt, graph_hash

VIDEO_SUFFIXES = {".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v"}
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".exr"}
RECORD_NAME = ".done.json"


@dataclass
class Job:
    """One picture (None: run the graph as it is) and the folder of its results.

    tried: servers that did not run it, though it may run elsewhere. lost: how often a server went away while it ran.
    """

    picture: Path | None
    folder: Path
    tried: set[str] = field(default_factory=set)
    attempts: int = 0
    lost: int = 0

    def __str__(self) -> str:
        return str(self.picture or self.folder)


@dataclass
class Report:
    """What became of the jobs: done, failed with the reason, or left because no server is."""

    done: list[Job] = field(default_factory=list)
    failed: list[tuple[Job, str]] = field(default_factory=list)
    left: list[Job] = field(default_factory=list)


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


def record_of(job: Job, graph: str) -> dict:
    """What is run, as its record says it: another graph or another picture is not done."""
    if job.picture is None:
        return {"graph": graph, "picture": None}
    about = job.picture.stat()
    return {"graph": graph, "picture": {"name": job.picture.name, "bytes": about.st_size, "modified_ns": about.st_mtime_ns}}


def is_done(job: Job, graph: str) -> bool:
    """Whether the job's record says that this graph ran on this picture, and its files are there as they were written."""
    kept = job.folder / RECORD_NAME
    try:
        record = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else None
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(record, dict):
        return False
    files, sizes = record.pop("files", None), record.pop("sizes", None)
    if not isinstance(files, list) or not files or not all(isinstance(name, str) for name in files):
        return False
    record.pop("seconds", None)
    if record != record_of(job, graph):
        return False
    # A result that was cut is none. Records of before have no sizes.
    there = [path.stat().st_size if (path := job.folder / name).is_file() else 0 for name in files]
    return all(there) and sizes in (None, there)


def read_picture(job: Job) -> tuple[bytes, str] | None:
    """(content, suffix) of a job's picture. Raises PictureFailed."""
    if job.picture is None:
        return None
    try:
        return job.picture.read_bytes(), job.picture.suffix
    except OSError as error:
        raise PictureFailed(f"cannot be read: {error}") from error


async def results_of(
    server: Server, prompt: Prompt, target: tuple[str, str] | None, picture: tuple[bytes, str] | None, progress: Callable[[str], None]
) -> list[tuple[str, bytes]]:
    """Runs the graph on one picture on one server: (name, content) of every file that it saved. Raises as `Server` does."""
    nodes = {node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in prompt.items()}
    if target and picture:
        nodes[target[0]]["inputs"][target[1]] = await server.upload(*picture)
    outputs = await server.run(nodes, progress)
    files = [
        entry
        for node in outputs.values()
        for entries in node.values()
        if isinstance(entries, list)
        for entry in entries
        if isinstance(entry, dict) and entry.get("type") == "output" and isinstance(entry.get("filename"), str) and entry["filename"]
    ]
    if not files:
        raise PictureFailed("the graph saved no file: it needs a node such as Save Image")
    results: dict[str, tuple[str, bytes]] = {}
    for file in files:
        stem, suffix = os.path.splitext(Path(file["filename"]).name)
        # ComfyUI numbers its files (normal_00001_.png); here each picture has a folder, so the number goes.
        stem = re.sub(r"_\d{5,}_?$", "", stem)
        choices = (f"{stem}{suffix}", *(f"{stem}_{number}{suffix}" for number in range(2, len(files) + 2)))
        # Where case does not count, two names may be one file.
        name = next(choice for choice in choices if choice.casefold() not in results)
        content = await server.download(file)
        if not content:
            raise ServerFaulty(f"{server.url} hands out {file['filename']} empty")
        results[name.casefold()] = (name, content)
    return list(results.values())


def keep_results(job: Job, record: dict, results: Sequence[tuple[str, bytes]], seconds: float) -> list[Path]:
    """Writes a job's files and then its record (`record_of`, from before it ran); returns the files' paths. Raises BatchError."""
    try:
        for name, content in results:
            write_atomically(job.folder / name, content)
        record = record | {"files": [name for name, _ in results], "sizes": [len(content) for _, content in results]}
        write_atomically(job.folder / RECORD_NAME, json.dumps(record | {"seconds": round(seconds, 2)}, indent=1).encode())
    except OSError as error:
        raise BatchError(f"the results of {job} cannot be written: {error}") from error
    return [job.folder / name for name, _ in results]


async def run_job(server: Server, prompt: Prompt, target: tuple[str, str] | None, job: Job, progress: Callable[[str], None]) -> list[Path]:
    """Runs the graph for one job on one server and returns the files written. Raises as `Server` does, or BatchError."""
    start, record = time.monotonic(), record_of(job, graph_hash(prompt, target))
    results = await results_of(server, prompt, target, read_picture(job), progress)
    return keep_results(job, record, results, time.monotonic() - start)
