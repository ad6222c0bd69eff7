"""Writes example_workflows/api/NAME.json from example_workflows/NAME.json, through ComfyUI's real front end."""

import argparse
import json

from .batch import write_atomically
from .console import exit_code, say, step
from .demo import started_server
from .example_workflows import example_workflows
from .front_end import front_end, open_workflow, picture_of, prompt_of, queue, results_of


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
            with step(f"Exporting {example.name}") as notes:
                problems = [text for text in open_workflow(page, example.graph()) if not (example.needs and text.startswith("red"))]
                write_atomically(example.api_path, api_text(prompt_of(page)).encode())
                if thumbnails:
                    ending = "not run: needs " + ", ".join(example.needs) if example.needs else queue(page)
                    write_atomically(example.thumbnail_path, picture_of(page) if example.needs else results_of(page))
                    problems += [] if example.needs or ending == "execution_success" else [ending]
                    notes.append(ending)
                notes += problems
                failures += problems
    if failures:
        say("Some workflows are not right: see above.")
    return 1 if failures else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="names of workflows (default: all)")
    parser.add_argument("--thumbnails", action="store_true", help="also run each one and write its picture, NAME.jpg")
    chosen = parser.parse_args()
    raise SystemExit(exit_code(lambda: run(chosen.names, chosen.thumbnails)))
