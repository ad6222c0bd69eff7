"""Samplers that draw noise as they go, made to draw the same for a picture and its maps."""

import functools
import inspect
from collections.abc import Callable

import comfy.samplers
import torch
from comfy.k_diffusion import sampling
from torch import Tensor

GOOD_SAMPLERS = "euler, heun, dpmpp_2m, deis, uni_pc, ddim, or any of core's ancestral and SDE samplers"


def require_joint_batch(rows: int) -> None:
    """Raises ValueError unless the rows can be pairs."""
    if rows % 2:
        raise ValueError(
            f"The latent has {rows} row{'s' * (rows != 1)}, but this MODEL samples a picture and its intrinsics in pairs: put Joint Latent "
            "between your latent and the sampler, or connect the MODEL from before Cross-Domain Attention."
        )


def require_same_noise(noise_bchw: Tensor) -> None:
    """Raises ValueError unless the second half of the rows starts from the same noise as the first."""
    require_joint_batch(noise_bchw.shape[0])
    picture, intrinsic = noise_bchw.chunk(2)
    if not torch.equal(picture, intrinsic):
        raise ValueError(
            f"The {noise_bchw.shape[0]} rows of this latent do not start from the same noise in pairs, as a picture and its intrinsics "
            "must: put Joint Latent between your latent and the sampler (it sets batch_index), or use noise that honours batch_index."
        )


def sharing_noise(sampler: comfy.samplers.Sampler, copies: int = 2) -> comfy.samplers.Sampler:
    """A sampler whose own noise is the same in each of `copies` equal parts of the batch; deterministic samplers come back as they are.

    The noise of the first part is what the sampler would draw for that part alone. Raises ValueError for samplers that draw noise
    where it cannot be reached.
    """
    if not isinstance(sampler, comfy.samplers.KSAMPLER):
        return sampler
    function, options = sampler.sampler_function, sampler.extra_options
    # DDIM's inpainting noise is drawn per row; the shared starting noise serves as well.
    inpaint_options = {**sampler.inpaint_options, "random": False}
    if "noise_sampler" in inspect.signature(function).parameters:
        return comfy.samplers.KSAMPLER(_with_shared_noise(function, copies), options, inpaint_options)
    # Core's samplers are wrapped in torch.no_grad.
    names = getattr(getattr(inspect.unwrap(function), "__code__", None), "co_names", ())
    # Of core's samplers that draw noise themselves, these do so only for s_churn > 0.
    churns = options.get("s_churn", 0) > 0 if "s_churn" in inspect.signature(function).parameters else True
    if churns and any(name.startswith("randn") for name in names):
        raise ValueError(
            f"The sampler {function.__name__.removeprefix('sample_')} draws noise of its own for every row, which would tear a picture and "
            f"its maps apart: use {GOOD_SAMPLERS}, without churn."
        )
    return comfy.samplers.KSAMPLER(function, options, inpaint_options)


def _with_shared_noise(function: Callable, copies: int) -> Callable:
    @functools.wraps(function)
    def sample(model, x, sigmas, extra_args=None, noise_sampler=None, **options):
        part = x.shape[0] // copies
        draw = noise_sampler or _core_noise(function.__name__, x[:part], sigmas, (extra_args or {}).get("seed"))

        def shared(sigma, sigma_next) -> Tensor:
            return draw(sigma, sigma_next)[:part].repeat(copies, *[1] * (x.ndim - 1))

        return function(model, x, sigmas, extra_args=extra_args, noise_sampler=shared, **options)

    return sample


def _core_noise(name: str, x: Tensor, sigmas: Tensor, seed: int | None) -> Callable:
    """The noise that core's sampler of this name draws for x by default: a Brownian path for DPM-Solver++ SDE, else independent."""
    if name.startswith("sample_dpmpp_") and "sde" in name and len(sigmas) > 1:
        return sampling.BrownianTreeNoiseSampler(x, sigmas[sigmas > 0].min(), sigmas.max(), seed=seed, cpu=not name.endswith("_gpu"))
    return sampling.default_noise_sampler(x, seed=seed)
