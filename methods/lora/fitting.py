"""Whether a LoRA can be put on a model, by their headers alone.

It can where every matrix that it changes may be one of the model's weights, or some rows of one, such as a projection that is fused with
others. Names have no part in it, so that every network and every width counts. What a header cannot tell fits.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..intrinsic_lora.multi_step import METHODS
from ..lumix.intrinsix import width_in_header
from .header import DTYPES, BadFile, Header, Layout, TensorInfo, once_per_layout, text_of
from .modules import sizes_of
from .names import fused_rows

# Of a checkpoint file, whose other weights are text encoders' and the VAE's.
_NETWORK = "model.diffusion_model."
_TEXT_ENCODER = re.compile(r"te\d_")
# Kinds of files: what several maps share, what another method's model needs, all other LoRAs.
MAPS_TOGETHER, ELSEWHERE, PLAIN = "maps together", "elsewhere", "plain"


@dataclass(frozen=True)
class Change:
    """What a LoRA file changes. shapes: (rows, columns) of matrices. kind: MAPS_TOGETHER (LumiX, IntrinsiX), ELSEWHERE (I-LDM, VQGANs and
    GANs, text encoders alone) or PLAIN. map: of Intrinsic LoRA, "" where the header names none."""

    shapes: frozenset[tuple[int, int]]
    kind: str
    map: str = ""

    def fits(self, rows: Mapping[int, int]) -> bool:
        """rows: of a model, by `rows_by_columns`."""
        return all(count <= rows.get(columns, 0) for count, columns in self.shapes)


def change_in(header: Header) -> Change:
    """Of a LoRA file. Raises BadFile for a file that is none, or incomplete."""
    forms = {name: info.form.shape for name, info in header.layout.tensors.items() if isinstance(info, TensorInfo)}
    if (width := width_in_header(forms, header.metadata)) is not None:
        return Change(frozenset({(width, width)}), MAPS_TOGETHER)
    method, generator, map_name = (text_of(header.metadata, f"intrinsic_lab.{name}") for name in ("method", "generator", "map"))
    shapes = _changed(header.layout)
    elsewhere = shapes is None or generator or (method and method not in METHODS)
    return Change(shapes or frozenset(), ELSEWHERE if elsewhere else PLAIN, map_name)


@once_per_layout
def _changed(layout: Layout) -> frozenset[tuple[int, int]] | None:
    """Shapes of the network's matrices; None where only text encoders change. Biases and factors know their rows alone: left out."""
    network = {name: size for name, size in sizes_of(layout).items() if not _TEXT_ENCODER.match(name)}
    pieces = ((stop - start, size.width) for name, size in network.items() for _, start, stop in fused_rows(name, size.out, size.width))
    return frozenset(piece for piece in pieces if piece[1] > 1) if network else None


def rows_by_columns(layouts: Iterable[Layout]) -> dict[int, int]:
    """Columns -> the most rows of a matrix that has as many, of a model's network; a convolution with its kernel and without.

    layouts: of its files. Raises BadFile where weights are packed, so that their shapes do not say the layer's.
    """
    tensors = {name: info for layout in layouts for name, info in layout.tensors.items()}
    network = {name: info for name, info in tensors.items() if name.startswith(_NETWORK)} or tensors
    rows: dict[int, int] = {}
    for name, info in network.items():
        if not isinstance(info, TensorInfo) or (len(info.form.shape) > 1 and info.form.kind not in DTYPES):
            raise BadFile(f"{name} is packed: its shape is not the layer's.")
        if len(info.form.shape) > 1:
            for columns in (info.form.shape[1], info.form.matrix[1]):
                rows[columns] = max(rows.get(columns, 0), info.form.shape[0])
    return rows
