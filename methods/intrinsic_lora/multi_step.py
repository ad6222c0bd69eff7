"""Intrinsic LoRA in many steps (section 5): the methods, and the noise that a file of theirs was trained with.

single: one forward pass, no noise. multi: the base's own denoising, of the map's latent; sampled from the picture's latent under noise
(SDEdit), which leaves maps misaligned. augmented: I-LoRA_AUG: the network sees the picture's clean latent beside the map's noisy one,
predicts the velocity, and knows a last step of noise alone.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

METHODS = SINGLE, MULTI, AUGMENTED = ("single", "multi", "augmented")
PREDICTIONS = ("epsilon", "v_prediction")
MOST_TIMESTEPS = 10_000
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
# The weight in a LoRA file by which the picture's latent comes in: [width, channels, kernel, kernel], added to the first convolution's
# output. No loader takes it for a LoRA layer, so that core's LoraLoader loads all the rest and only names this key in its log.
PICTURE_KEY = "intrinsic_lab.picture_in.weight"


@dataclass(frozen=True)
class Noise:
    """A process of noise, in diffusers' terms: what is predicted, and the betas; zero_snr: rescaled to a last step of noise alone.

    The defaults are upstream's for the augmented method. Raises ValueError for what no sampler here knows.
    """

    prediction: str = "v_prediction"
    betas: str = "scaled_linear"
    first_beta: float = 0.00085
    last_beta: float = 0.012
    timesteps: int = 1000
    zero_snr: bool = True

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS or self.betas not in BETAS:
            raise ValueError(
                f"{self.betas} betas and the prediction {self.prediction} came: {', '.join(BETAS)}; {' or '.join(PREDICTIONS)} are known."
            )
        if not (0 < self.first_beta <= self.last_beta < 1 and 1 < int(self.timesteps) <= MOST_TIMESTEPS):
            raise ValueError(f"betas from {self.first_beta} to {self.last_beta} in {self.timesteps} timesteps came: 0 < first <= last < 1.")

    def header(self) -> str:
        """For a LoRA file."""
        return json.dumps(asdict(self))


def noise_of(header: Mapping[str, str], source: str) -> Noise:
    """That of a LoRA file's header (`intrinsic_lab.` taken off), upstream's where it says nothing. Raises ValueError, naming `source`."""
    if "noise" not in header:
        return Noise()
    try:
        return Noise(**json.loads(header["noise"]))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{source} has '{header['noise']}' as intrinsic_lab.noise in its header ({error}): export it again.") from None
