"""LoRA space on the command line: JSON on standard output, progress on standard error.

python -m intrinsic_lab.methods.lora_space index DIR
python -m intrinsic_lab.methods.lora_space similar DIR --query FILE -k 5
python -m intrinsic_lab.methods.lora_space duplicates DIR
python -m intrinsic_lab.methods.lora_space map DIR --out map.png
python -m intrinsic_lab.methods.lora_space convert FILE --out FILE --precision fp16
"""

import argparse
import gc
import hashlib
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..lora.convert import PRECISIONS, convert_file
from ..lora.names import SUBNETWORKS
from .baseline import nearest_raw
from .duplicates import find_duplicates
from .entries import Progress
from .index import WORKERS, LoraIndex
from .lora_map import draw_map, map_loras
from .postgres_store import PostgresStore
from .qdrant_store import QdrantStore, connect
from .relatives import find_relatives
from .search import RERANK, family_of, find_similar
from .space import Store


def default_database(folder: Path) -> Path:
    """One index per folder, in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    name = hashlib.blake2b(os.path.abspath(folder).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return Path(cache) / "intrinsic-lab" / "lora_space" / f"{name}.sqlite"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m intrinsic_lab.methods.lora_space", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("folder", type=Path, metavar="DIR", help="folder of LoRA files")
    common.add_argument("--database", type=Path, help="the index's file (default: one per DIR in the user's cache)")
    common.add_argument("--workers", type=int, default=WORKERS, help="files read at once (%(default)s)")
    choice = argparse.ArgumentParser(add_help=False)
    choice.add_argument("--family", help="only LoRAs for this base model, such as sdxl")
    choice.add_argument("--subfolder", help="only LoRAs below this folder of DIR")
    network = argparse.ArgumentParser(add_help=False)
    network.add_argument("--subnetwork", choices=list(SUBNETWORKS), default="all", help="weights that are compared (%(default)s)")

    index = commands.add_parser("index", parents=[common], help="read what is new or changed in DIR")
    index.add_argument("--headers-only", action="store_true", help="read no weights yet")
    similar = commands.add_parser("similar", parents=[common, choice, network], help="find LoRAs like others")
    similar.add_argument("--query", nargs="+", required=True, metavar="FILE", help="LoRAs to be like: names below DIR, or paths")
    similar.add_argument("--unlike", nargs="+", default=[], metavar="FILE", help="LoRAs to be unlike")
    similar.add_argument("-k", type=int, default=5, help="how many (%(default)s)")
    similar.add_argument("--rerank", type=int, default=RERANK, help="candidates that are compared exactly; 0: none (%(default)s)")
    similar.add_argument(
        "--embedding", choices=["sketches", "raw"], default="sketches", help="raw: the paper's own form, at most 2,000 LoRAs"
    )
    similar.add_argument("--qdrant", metavar="WHERE", help="look the vectors up there: http://host:6333, or a folder (Qdrant's local mode)")
    similar.add_argument(
        "--postgres", metavar="WHERE", help="or there: postgresql://user@host/database (password: ~/.pgpass or PGPASSWORD), with pgvector"
    )
    commands.add_parser("duplicates", parents=[common, choice], help="find the same weights in several files")
    drawing = commands.add_parser("map", parents=[common, choice, network], help="draw all LoRAs of a family")
    drawing.add_argument("--out", type=Path, required=True, help="the picture, a PNG")
    drawing.add_argument("--size", type=int, default=1024, help="pixels on a side (%(default)s)")
    drawing.add_argument("--clusters", type=int, help="how many clusters (default: as many as there seem to be)")
    convert = commands.add_parser("convert", help="write a LoRA in the names that ComfyUI's loader knows")
    convert.add_argument("file", type=Path, metavar="FILE", help="a LoRA in any spelling")
    convert.add_argument("--out", type=Path, required=True, help="the file to write")
    convert.add_argument("--precision", choices=list(PRECISIONS), default="as it is", help="of its numbers (%(default)s)")
    convert.add_argument("--overwrite", action="store_true", help="write over a file that is there")
    return parser


def _file(folder: Path, name: str) -> Path:
    below = folder / name
    return below if below.exists() else Path(name)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The answer to one command."""
    if options.command == "convert":
        converted = convert_file(options.file, options.out, options.precision, overwrite=options.overwrite)
        return {"written": str(options.out), "tensors": len(converted.tensors), "note": converted.note}
    if not options.folder.is_dir():
        raise ValueError(f"{options.folder} is not a folder: name the folder of your LoRAs.")
    if options.command == "map" and not options.out.absolute().parent.is_dir():
        raise ValueError(f"{options.out.parent} is not a folder: make it first.")
    with LoraIndex(options.database or default_database(options.folder)) as index:
        embed = options.command != "index" or not options.headers_only
        summary = index.update([options.folder], embed=embed, workers=options.workers, report=_progress)
        if options.command == "index":
            not_loading = {entry.name: entry.loading for entry in index.not_loading()}
            return asdict(summary) | {"database": str(index.database), "statistics": index.statistics(), "not_loading": not_loading}
        print(summary.text(), file=sys.stderr)
        choice = {"family": options.family, "folder": options.subfolder, "report": _progress}
        if options.command == "similar":
            like, unlike = ([_file(options.folder, name) for name in names] for names in (options.query, options.unlike))
            if options.embedding == "raw":
                if len(like) > 1 or unlike or options.family or options.qdrant or options.postgres:
                    raise ValueError("--embedding raw takes one --query and neither --unlike, --family, --qdrant nor --postgres.")
                found = nearest_raw(index, like[0], k=options.k, subnetwork=options.subnetwork, folder=options.subfolder)
            else:
                choice |= {"store": _store(options, index, [*like, *unlike])}
                found = find_similar(index, like, unlike, k=options.k, subnetwork=options.subnetwork, rerank=options.rerank, **choice)
            return {"query": [str(path) for path in like], "matches": [match.as_json() for match in found]}
        if options.command == "duplicates":
            groups = find_duplicates(index, **choice)
            copies = {copy.entry.id for group in groups for copy in group.copies}
            relatives = find_relatives(index, copies=copies, **choice)
            return {"groups": [group.as_json() for group in groups], "relatives": [one.as_json() for one in relatives]}
        drawn = map_loras(index, subnetwork=options.subnetwork, clusters=options.clusters, **choice)
        _save(options.out, draw_map(drawn, options.size))
        return {"picture": str(options.out)} | drawn.as_json()


def _store(options: argparse.Namespace, index: LoraIndex, query: Sequence[Path]) -> Store | None:
    """The server that was asked for, in step with the index."""
    if options.qdrant and options.postgres:
        raise ValueError("--qdrant and --postgres were both given: name one server.")
    if not (options.qdrant or options.postgres):
        return None
    choice = {"index": index, "family": family_of(index, query), "subnetwork": options.subnetwork, "report": _progress}
    if options.postgres:
        return PostgresStore.sync(options.postgres, **choice)
    return QdrantStore.sync(connect(options.qdrant), **choice)


def _save(path: Path, picture) -> None:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    path.write_bytes(data.getvalue())


def _progress(progress: Progress) -> None:
    if sys.stderr.isatty():
        end = "\n" if progress.done == progress.total else ""
        print(f"\r{progress.stage} {progress.done}/{progress.total}   ", end=end, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the answer as JSON; returns 0, or 1 after saying on standard error what is wrong, or 130 when interrupted."""
    # Streams that a program put in their place know no encoding.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        answer = run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what was read is kept.", file=sys.stderr)
        return 130
    print(json.dumps(answer, indent=1, ensure_ascii=False))
    return 0


def own_process() -> None:
    """Settings of the whole process, for one that does nothing else: each reader is a thread of its own, and what imports made lives on.

    In ComfyUI's process, which others share, the index leaves both as they are.
    """
    torch.set_num_threads(1)
    gc.freeze()


if __name__ == "__main__":
    own_process()
    raise SystemExit(main())
