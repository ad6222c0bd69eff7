"""What a LoRA file comes to: the change of each layer. Handed on everywhere; what reads files is imported where it is done."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LoraLayer:
    """The change of one layer: `scale * up @ down`.

    down: [rank, in] or, for a convolution, [rank, in, kh, kw]. up: [out, rank] or [out, rank, 1, 1].
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass(frozen=True)
class LoraFile:
    """What a LoRA file holds. `layers` is keyed by module name: diffusers', or LDM's where the file uses those.

    `metadata` is the safetensors header (empty for pickled files). `ignored` counts text-encoder tensors, which a UNet has no use for.
    `attention_processors`: whether it has the keys of diffusers' old attention processors. `picture_in`: of augmented Intrinsic LoRAs
    (`intrinsic_lora.multi_step`).
    """

    layers: dict[str, LoraLayer]
    metadata: dict[str, str]
    ignored: int = 0
    attention_processors: bool = False
    picture_in: Tensor | None = None
