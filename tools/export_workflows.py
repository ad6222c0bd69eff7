"""Writes FOLDER/api/NAME.json from FOLDER/NAME.json of every example, through ComfyUI's real front end; mends the graph first."""

import argparse
import json

from .batch_jobs import write_atomically
from .console import exit_code, say, step
from .demo import started_server
from .example_workflows import example_workflows
from .front_end import front_end, open_workflow, prompt_of, queue, results_of
from .saved_graphs import mend


def api_text(prompt: dict) -> str:
    """The prompt as it is written to a file."""
    return json.dumps(prompt, indent=2, ensure_ascii=False) + "\n"


def run(names: list[str], thumbnails: bool) -> int:
    """Exports the named workflows (all, if none is named); 1 if one has missing nodes or fails to run for its thumbnail."""
    failures = []
    with started_server() as server, front_end(server.url) as page:
        for example in example_workflows():
            if names and example.name not in names:
                continue
            mend(example.graph_path)
            with step(f"Exporting {example.name}") as notes:
                problems = [text for text in open_workflow(page, example.graph()) if not (example.needs and text.startswith("red"))]
                write_atomically(example.api_path, api_text(prompt_of(page)).encode())
                # A card shows results: of what cannot run here it stays as it is.
                if thumbnails and not example.needs:
                    ending = queue(page)
                    problems += [] if ending == "execution_success" else [ending]
                    write_atomically(example.thumbnail_path, results_of(page))
                notes += problems
                failures += problems
    if failures:
        say("Some workflows are not right: see above.")
    return 1 if failures else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="names of workflows (default: all)")
    parser.add_argument("--thumbnails", action="store_true", help="also run each one that can run here and write its card, NAME.jpg")
    chosen = parser.parse_args()
    raise SystemExit(exit_code(lambda: run(chosen.names, chosen.thumbnails)))
