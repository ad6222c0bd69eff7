"""The process of noise that a multi-step Intrinsic LoRA is trained and sampled with."""

import json
from pathlib import Path

from diffusers import DDPMScheduler

from ...methods.intrinsic_lora.multi_step import AUGMENTED, Noise

_SCHEDULER = "scheduler/scheduler_config.json"


def noise_for(base: Path, method: str) -> Noise:
    """Of a diffusers folder: the base's own; for the augmented method with its velocity and without signal in the last step.

    Raises ValueError for a base without such noise.
    """
    if not (base / _SCHEDULER).is_file():
        raise ValueError(f"{base.name} has no {_SCHEDULER}: give a complete model in diffusers format.")
    config = json.loads((base / _SCHEDULER).read_text(encoding="utf-8"))
    if config.get("trained_betas") is not None:
        raise ValueError(f"{base.name} lists its betas one by one (trained_betas): a base with a named schedule was expected.")
    augmented = method == AUGMENTED
    return Noise(
        "v_prediction" if augmented else config.get("prediction_type", "epsilon"),
        config.get("beta_schedule", "linear"),
        config.get("beta_start", 0.0001),
        config.get("beta_end", 0.02),
        config.get("num_train_timesteps", 1000),
        augmented or bool(config.get("rescale_betas_zero_snr", False)),
    )


def scheduler_of(noise: Noise) -> DDPMScheduler:
    """diffusers' object for a process of noise; timesteps are spaced from the last one down."""
    # By name: diffusers takes what comes by position for its defaults when another scheduler is made of this one's config.
    return DDPMScheduler(
        num_train_timesteps=noise.timesteps,
        beta_start=noise.first_beta,
        beta_end=noise.last_beta,
        beta_schedule=noise.betas,
        prediction_type=noise.prediction,
        rescale_betas_zero_snr=noise.zero_snr,
        timestep_spacing="trailing",
        clip_sample=False,
    )
