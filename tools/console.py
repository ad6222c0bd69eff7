"""What the workbench says on the terminal: steps with their time, and failures with their remedy."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class WorkbenchError(Exception):
    """A step that failed: what happened, and what a person can do about it."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}\n  What to do: {remedy}")


def say(text: str) -> None:
    """Prints one line at once, so that it is seen in a pipe too."""
    print(text, flush=True)


@contextmanager
def step(title: str) -> Iterator[list[str]]:
    """Announces a step and prints how long it took; what is appended to the yielded list is printed as its result."""
    say(f"- {title}")
    notes: list[str] = []
    start = time.monotonic()
    try:
        yield notes
    except BaseException:
        say(f"    failed after {time.monotonic() - start:.1f} s")
        raise
    result = "; ".join(notes) or "done"
    say(f"    {result} ({time.monotonic() - start:.1f} s)")


def run_logged(command: Sequence[str | Path], log: Path, remedy: str, environment: dict[str, str] | None = None) -> None:
    """Runs a command with its output in `log`; on a terminal the latest line is shown in passing.

    Raises WorkbenchError with the last lines of the output if the command fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [str(word) for word in command]
    live = sys.stdout.isatty()
    tail: list[str] = []
    with open(log, "a", encoding="utf-8") as record:
        record.write(f"$ {' '.join(words)}\n")
        try:
            process = subprocess.Popen(
                words,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise WorkbenchError(f"{words[0]} could not be started: {error}", remedy) from error
        with process:
            for line in process.stdout or ():
                record.write(line)
                tail = [*tail[-24:], line.rstrip()]
                if live:
                    print(f"\r    {line.strip()[:100]:<100}", end="", flush=True)
            code = process.wait()
        if live:
            print(f"\r{'':<106}\r", end="", flush=True)
    if code:
        last = "\n    ".join(tail)
        raise WorkbenchError(f"`{' '.join(words[:6])} ...` ended with exit code {code}. Its last words:\n    {last}", remedy)


def exit_code(command: Callable[[], int]) -> int:
    """Runs a command of the workbench; a failed step becomes its message and 2, Ctrl-C becomes 130."""
    try:
        return command()
    except WorkbenchError as error:
        say(f"\n{error}")
        return 2
    except KeyboardInterrupt:
        say("\nStopped.")
        return 130


def format_table(rows: Sequence[dict]) -> str:
    """Rows with the same keys as an aligned text table; floats with four significant digits."""
    if not rows:
        return "(nothing)"
    cells = [list(rows[0]), *([f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
