"""The noise schedule of a diffusers folder in ComfyUI's terms."""

from dataclasses import dataclass, field
from pathlib import Path

from comfy.model_base import ModelType

from .folder_files import ModelFolderError, read_config, require_finite, require_numbers, require_options

# diffusers' name -> ComfyUI's: both mean sqrt(beta) linear in t by the first, beta linear in t by the second.
BETA_SCHEDULES = {"scaled_linear": "linear", "linear": "sqrt_linear", "squaredcos_cap_v2": "squaredcos_cap_v2"}
MOST_TIMESTEPS = 10_000
PREDICTIONS = {"epsilon": ModelType.EPS, "v_prediction": ModelType.V_PREDICTION}


@dataclass(frozen=True)
class NoiseSchedule:
    """What a model predicts, and `sampling_settings` for ComfyUI's model_sampling."""

    prediction: ModelType
    settings: dict = field(default_factory=dict)


def read_diffusion_schedule(scheduler: Path) -> NoiseSchedule:
    """Schedule of a noise- or v-predicting model. `scheduler`: the folder with scheduler_config.json."""
    config = read_config(scheduler)
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ModelFolderError(
            f"The scheduler predicts {prediction!r}; {' or '.join(PREDICTIONS)} was expected: this model cannot be loaded natively."
        )
    name = config.get("_class_name", "")
    if name.startswith(("EDM", "FlowMatch")):
        raise ModelFolderError(
            f"The scheduler is {name}, a schedule of betas was expected (DDIM, PNDM, Euler, ...): this model cannot be loaded natively."
        )
    require_numbers(config, ("num_train_timesteps",), "scheduler", MOST_TIMESTEPS)
    require_finite(config, ("beta_start", "beta_end"), "scheduler")
    require_options(config, {"trained_betas": (None,), "beta_schedule": ("linear", *BETA_SCHEDULES)}, "scheduler")
    return NoiseSchedule(
        PREDICTIONS[prediction],
        {
            "beta_schedule": BETA_SCHEDULES[config.get("beta_schedule", "linear")],
            "linear_start": config.get("beta_start", 0.0001),
            "linear_end": config.get("beta_end", 0.02),
            "timesteps": config.get("num_train_timesteps", 1000),
            "zsnr": bool(config.get("rescale_betas_zero_snr", False)),
        },
    )


def read_flow_schedule(scheduler: Path) -> NoiseSchedule:
    """Schedule of FLUX: shifted by the picture's size as FLUX dev (`ModelType.FLUX`), or by a fixed factor as FLUX schnell (`FLOW`)."""
    config = read_config(scheduler)
    require_finite(config, ("max_shift", "shift"), "scheduler")
    if config.get("use_dynamic_shifting", False):
        return NoiseSchedule(ModelType.FLUX, {"shift": config.get("max_shift", 1.15)})
    return NoiseSchedule(ModelType.FLOW, {"shift": config.get("shift", 1.0), "multiplier": 1.0})
