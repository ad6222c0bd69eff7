"""`python -m intrinsic_lab.evaluate`: maps of a model, or anybody's predictions, against a public data set."""

import argparse
import logging
import sys
from pathlib import Path

from ..data import DATA_SETS, named_set
from ..methods.intrinsic_lora.recipe import AUTO, conventions
from ..methods.maps import MAPS
from ..methods.metrics import ALIGNMENTS
from ..training.intrinsic_lora.options import BASE
from .report import TABLE
from .run import EvaluationConfig, evaluate

REFUSED, STOPPED = 2, 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m intrinsic_lab.evaluate",
        description="Measure maps against a data set: of a base with an Intrinsic LoRA, or a folder of predictions. Writes pictures.csv, "
        "table.md and sheet.jpg; running the same command again goes on where it was stopped.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", required=True, metavar="NAME:FOLDER", help=f"a data set ({', '.join(DATA_SETS)}); docs/data.md")
    parser.add_argument("--split", default="", help="train, val, test or all; empty: the set's usual one")
    parser.add_argument("--map", required=True, choices=tuple(MAPS), help="what is judged")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--limit", type=int, default=0, help="judge the first so many pictures; 0: all")
    parser.add_argument("--align", choices=tuple(ALIGNMENTS), default=EvaluationConfig.alignment, help="of a depth before it is judged")

    made = parser.add_argument_group("what is judged: a folder, or a model")
    made.add_argument("--predictions", type=Path, help="NAME.npy or .exr (data) or .png (pictures), named as the set's pictures")
    made.add_argument("--base", type=Path, help=BASE)
    made.add_argument("--lora", type=Path, help="Intrinsic LoRA for this map")
    made.add_argument("--size", type=int, help="short side at which the model sees a picture; 0: its own (as the LoRA was trained, or 512)")
    made.add_argument("--convention", choices=(AUTO, *conventions()), default=AUTO, help="of the predicted map; auto: by its file")
    return parser


def config_from(arguments: argparse.Namespace) -> EvaluationConfig:
    """What the command line asks for. Raises ValueError for impossible values."""
    named = named_set(arguments.data)
    if named is None:
        raise ValueError(f"--data is {arguments.data!r}: name a data set before its folder, as diode:FOLDER ({', '.join(DATA_SETS)}).")
    return EvaluationConfig(
        named[0].name,
        named[1],
        arguments.map,
        arguments.output,
        arguments.split,
        arguments.predictions,
        arguments.base,
        arguments.lora,
        arguments.size,
        arguments.align,
        arguments.convention,
        arguments.limit,
    )


def main(argv: list[str] | None = None) -> int:
    """Run one evaluation; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    def say(done: int, of: int) -> None:
        if done % 50 == 0 or done == of:
            logging.info("%d of %d pictures", done, of)

    try:
        evaluate(config_from(arguments), say)
    except KeyboardInterrupt:
        logging.info("stopped; what was judged is kept in %s: run the same command to go on", arguments.output)
        return STOPPED
    except (ValueError, OSError) as error:
        logging.error("%s", error)
        return REFUSED
    print((arguments.output / TABLE).read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
