"""Which spelling of an operation runs: reference, torch or Triton.

`auto` takes Triton only where `dispatch_table.json` holds a measurement that says it is the fastest for that operation, device,
dtype and shape class; everywhere else it takes the torch path, which works on every device. Triton is imported by the first call
that launches it, never by importing this pack.
"""

import functools
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from .operands import any_requires_grad

TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TABLE_FILE = Path(__file__).with_name("dispatch_table.json")

# The spellings of an operation by backend: each takes the operation's tensors, then its settings.
Paths = Mapping[str, Callable[..., Tensor]]

logger = logging.getLogger(__name__)

# Operations whose measured path failed in this process: they stay on torch, and the failure is logged once.
_failed_operations: set[str] = set()


@dataclass(frozen=True)
class MeasuredChoice:
    """One row of the table: the fastest backend measured for a class of calls.

    capability: CUDA compute capability (major, minor); tokens: inclusive range of query tokens; ratio: time of the best other
    backend over the time of `backend`, from the run that wrote the row.
    """

    operation: str
    capability: tuple[int, int]
    dtype: str
    head_dim: int
    tokens: tuple[int, int]
    backend: str
    ratio: float


@functools.lru_cache(maxsize=1)
def measured_choices() -> tuple[MeasuredChoice, ...]:
    """Rows of `dispatch_table.json`, in file order; the first that matches a call decides."""
    rows = json.loads(TABLE_FILE.read_text(encoding="utf-8"))["measured"]
    return tuple(MeasuredChoice(**{**row, "capability": tuple(row["capability"]), "tokens": tuple(row["tokens"])}) for row in rows)


def interpreting() -> bool:
    """Whether Triton kernels run in its CPU interpreter (the variable must be set before a kernel is first used)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def triton_problem(sample: Tensor) -> str | None:
    """Why Triton cannot take `sample`, or None when it can."""
    if importlib.util.find_spec("triton") is None:
        return "the package 'triton' is not installed"
    if sample.dtype not in TRITON_DTYPES:
        return f"Triton kernels take float32, float16 or bfloat16, not {sample.dtype}"
    if interpreting():
        return None if sample.device.type == "cpu" else f"TRITON_INTERPRET is set, and the tensors are on {sample.device}, not on the CPU"
    if sample.device.type != "cuda":
        return (
            f"the tensors are on {sample.device}, not on a CUDA device (set TRITON_INTERPRET=1 before the first call to interpret on CPU)"
        )
    return None


# Name of a backend -> why it cannot take a tensor, None where it can. `auto` picks among them by the table, and falls back to torch.
BACKENDS: dict[str, Callable[[Tensor], str | None]] = {
    "reference": lambda _: None,
    "torch": lambda _: None,
    "triton": triton_problem,
}


def _table_backend(operation: str, sample: Tensor, head_dim: int, tokens: int) -> str:
    if sample.device.type != "cuda" or interpreting():
        return "torch"
    capability = torch.cuda.get_device_capability(sample.device)
    dtype = str(sample.dtype).removeprefix("torch.")
    wanted = (operation, capability, dtype, head_dim)
    for row in measured_choices():
        if (row.operation, row.capability, row.dtype, row.head_dim) == wanted and row.tokens[0] <= tokens <= row.tokens[1]:
            return row.backend
    return "torch"


def run_backend(backend: str, operation: str, paths: Paths, operands: Sequence[Tensor | None], *settings: object) -> Tensor:
    """paths[backend](*operands, *settings), or for "auto" the path that was measured as the fastest.

    operands: the call's tensors, the first of which gives device, dtype, tokens and head dim. When one of them needs a gradient, `auto`
    stays on torch, whose backward is fused. A path chosen by `auto` that fails is replaced by torch for the rest of the process, with one
    logged line; a backend asked for by name runs or raises. Raises ValueError for an unknown backend, RuntimeError where one cannot run.
    """
    sample = next(operand for operand in operands if operand is not None)
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; expected one of auto, {', '.join(BACKENDS)}.")
    if backend != "auto":
        problem = BACKENDS[backend](sample)
        if problem is not None:
            raise RuntimeError(f"{operation}: backend={backend!r} cannot run: {problem}. Use backend='auto' or 'torch'.")
        return paths[backend](*operands, *settings)
    stays_on_torch = any_requires_grad(operands) or operation in _failed_operations
    chosen = "torch" if stays_on_torch else _table_backend(operation, sample, sample.shape[-1], sample.shape[-2])
    if chosen == "torch":
        return paths["torch"](*operands, *settings)
    problem = BACKENDS[chosen](sample)
    if problem is None:
        try:
            return paths[chosen](*operands, *settings)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # A compiler, driver or linker fault has no common class; it is reported below.
            problem = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
    _failed_operations.add(operation)
    logger.warning("%s: the %s path is not usable (%s); the torch path is used instead.", operation, chosen, problem)
    return paths["torch"](*operands, *settings)


def write_choices(rows: list[MeasuredChoice]) -> None:
    """Puts measured rows first in `dispatch_table.json`, replacing rows of the same class; used by the benchmarks on a CUDA device."""
    table = json.loads(TABLE_FILE.read_text(encoding="utf-8"))

    def shape_class(row: MeasuredChoice) -> tuple:
        return row.operation, row.capability, row.dtype, row.head_dim, row.tokens

    fresh = {shape_class(row) for row in rows}
    table["measured"] = [asdict(row) for row in (*rows, *(row for row in measured_choices() if shape_class(row) not in fresh))]
    temporary = TABLE_FILE.with_name(TABLE_FILE.name + ".part")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(table, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, TABLE_FILE)
    measured_choices.cache_clear()
