"""`python -m intrinsic_lab.evaluate.loras DIR`: do the weights of a shelf of LoRAs tell its folders apart?

Every folder is a label. LoRAs ask for their own among all others (top-1, mean average precision); as many clusters as there are folders
are compared with them (NMI, ARI). ± is the standard deviation over random halves of every folder. Writes table.md, and loras.csv with
every LoRA's folder and cluster.
"""

import argparse
import csv
import io
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy

from ..methods.lora.names import SUBNETWORKS
from ..methods.lora_space.__main__ import default_database, own_process
from ..methods.lora_space.agreement import Collection, as_markdown, ours, scores
from ..methods.lora_space.clusters import cluster_vectors
from ..methods.lora_space.entries import Entry
from ..methods.lora_space.index import LoraIndex
from ..training.atomic import write_text
from .report import TABLE

LORAS = "loras.csv"
REFUSED, STOPPED = 2, 130
_LOG = logging.getLogger(__name__)


def labelled(index: LoraIndex, family: str | None = None) -> list[Entry]:
    """LoRAs of one base model in folders that hold two or more of them. family: default, that of most LoRAs. Raises ValueError."""
    counts = Counter(entry.family for entry in index.entries() if entry.embedded)
    if family is None and counts:
        family = counts.most_common(1)[0][0]
    entries = sorted((entry for entry in index.entries(family=family) if entry.embedded), key=lambda entry: entry.name)
    folders = Counter(entry.folder for entry in entries)
    kept = [entry for entry in entries if entry.folder and folders[entry.folder] > 1]
    if len({entry.folder for entry in kept}) < 2:
        held = ", ".join(f"{name} ({number})" for name, number in counts.most_common()) or "none"
        raise ValueError(
            f"fewer than two folders hold two or more LoRAs for {family} (readable LoRAs: {held}): put those that belong together into a "
            "folder each, or choose another --family."
        )
    if left_out := len(entries) - len(kept):
        _LOG.warning("%d of %d LoRAs for %s are alone in their folder or in none, and left out", left_out, len(entries), family)
    return kept


def collection_of(entries: Sequence[Entry]) -> Collection:
    """What is scored: each LoRA's folder is its style."""
    styles = numpy.unique([entry.folder for entry in entries], return_inverse=True)[1]
    return Collection([Path(entry.path) for entry in entries], styles, numpy.array([entry.rank_max for entry in entries]))


def judge(
    folder: Path, output: Path, database: Path | None = None, family: str | None = None, subnetworks: Sequence[str] = ("all",)
) -> str:
    """Score a shelf, write table and list, and return the table. Raises ValueError for a shelf without labels."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name the folder of your LoRAs, with a folder for each kind in it.")
    with LoraIndex(database or default_database(folder)) as index:
        summary = index.update([folder])
        _LOG.info("%s", summary.text())
        entries = labelled(index, family)
        collection = collection_of(entries)
        rows: dict[str, dict[str, dict[str, float]]] = {}
        for part in subnetworks:
            for method, found in ours(collection, part, index).items():
                rows.setdefault(method, {})[part] = scores(found, collection)
        clusters = _clusters(index, entries, int(collection.styles.max()) + 1)
    names = sorted({entry.folder for entry in entries})
    text = f"# {len(names)} folders of LoRAs for {entries[0].family}\n\n{as_markdown(rows, collection)}\n\n{', '.join(names)}\n"
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["lora", "folder", "cluster"])
    writer.writerows([entry.name, entry.folder, cluster] for entry, cluster in zip(entries, clusters, strict=True))
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / LORAS, lines.getvalue())
    write_text(output / TABLE, text)
    return text


def _clusters(index: LoraIndex, entries: Sequence[Entry], count: int) -> list[int]:
    """The cluster of each LoRA, as the map of LoRAs draws them."""
    space = index.space(entries[0].family, "all")
    row_of = {int(number): row for row, number in enumerate(space.ids)}
    return cluster_vectors(space.joint[[row_of[entry.id] for entry in entries]], count).tolist()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m intrinsic_lab.evaluate.loras", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of LoRA files; its folders are the labels")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--family", help="only LoRAs for this base model, such as sdxl (default: that of most)")
    parser.add_argument("--subnetwork", nargs="+", choices=list(SUBNETWORKS), default=["all"], help="weights that are compared")
    parser.add_argument("--database", type=Path, help="the index's file (default: one per DIR in the user's cache)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Score one shelf; returns the exit status."""
    options = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        print(judge(options.folder, options.output, options.database, options.family, options.subnetwork))
    except KeyboardInterrupt:
        logging.info("stopped; what was read is kept: run the same command to go on")
        return STOPPED
    except (ValueError, OSError) as error:
        logging.error("%s", error)
        return REFUSED
    return 0


if __name__ == "__main__":
    own_process()
    sys.exit(main())
