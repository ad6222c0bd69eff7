"""Runs every example workflow that needs only the bundled weights over the API, and prints a table."""

import argparse
import asyncio
import time

import aiohttp

from .comfyui_client import PictureFailed, Server, ServerLost
from .console import WorkbenchError, exit_code, format_table, say
from .demo import started_server
from .example_workflows import ExampleWorkflow, example_workflows
from .prompt import load_prompt


async def run_one(url: str, example: ExampleWorkflow) -> int:
    """Runs one workflow and returns how many files it made, previews included. Raises PictureFailed."""
    async with aiohttp.ClientSession() as session:
        outputs = await Server(session, url).run(load_prompt(example.api_path), lambda _text: None)
    entries = [entry for node in outputs.values() for values in node.values() if isinstance(values, list) for entry in values]
    return sum(isinstance(entry, dict) and "filename" in entry for entry in entries)


def run(names: list[str]) -> int:
    """Runs the named workflows (all, if none is named); 1 if one fails. Raises WorkbenchError for a name that does not exist."""
    known = [example.name for example in example_workflows()]
    if unknown := [name for name in names if name not in known]:
        raise WorkbenchError(f"There is no workflow {', '.join(unknown)}.", f"choose among {', '.join(known)}.")
    rows, failed = [], False
    with started_server() as server:
        for example in example_workflows():
            if names and example.name not in names:
                continue
            start, files, result = time.monotonic(), 0, "done"
            if example.needs:
                result = f"not run: needs {', '.join(example.needs)}"
            else:
                say(f"- {example.name}")
                try:
                    files = asyncio.run(run_one(server.url, example))
                except (PictureFailed, ServerLost, aiohttp.ClientError, asyncio.TimeoutError) as error:
                    result, failed = f"FAILED: {error or type(error).__name__}", True
            rows.append({"workflow": example.name, "seconds": round(time.monotonic() - start, 1), "files": files, "result": result})
    say(f"\n{format_table(rows)}")
    return int(failed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="names of workflows (default: all)")
    chosen = parser.parse_args()
    raise SystemExit(exit_code(lambda: run(chosen.names)))
