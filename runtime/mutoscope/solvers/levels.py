"""Noise levels and timesteps of the flow-matching solvers, as Diffusers' schedulers compute them.

A noise level, or sigma, goes from 1 (noise) to 0 (clean). Timesteps are what the network is given, in units of training
timesteps. Knows nothing of update rules.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .options import SIGMAS, Config, ScheduleError, flow_shift_of

Levels = NDArray[np.float64]


def unipc_levels(options: Config, count: int) -> tuple[Levels, Levels]:
    """Timesteps [count] and sigmas [count + 1]."""
    train_steps = options.get("num_train_timesteps", 1000)
    given = options[SIGMAS]
    sigmas = np.linspace(1, 1 / train_steps, count + 1)[:-1] if given is None else given
    sigmas = _shifted(sigmas, flow_shift_of("unipc", options))
    sigmas = _stretched_to_terminal(sigmas, options)
    if abs(sigmas[0] - 1) < 1e-6:
        sigmas[0] -= 1e-6  # log-SNR stays finite
    last = sigmas[-1] if options.get("final_sigmas_type") == "sigma_min" else 0.0
    return np.trunc(sigmas * train_steps), _as_stored(sigmas, last)


def euler_levels(options: Config, count: int) -> tuple[Levels, Levels]:
    """Timesteps [count] and sigmas [count + 1]. As in Diffusers both ends are shifted twice, at first in float32."""
    train_steps, shift = options.get("num_train_timesteps", 1000), flow_shift_of("euler", options)
    low, high = (float(_shifted(np.float32(level) / np.float32(train_steps), shift)) for level in (1, train_steps))
    evenly, given = np.linspace(high * train_steps, low * train_steps, count) / train_steps, options[SIGMAS]
    sigmas = _shifted(evenly if given is None else given.astype(np.float32), shift)
    sigmas = _as_stored(_stretched_to_terminal(sigmas, options), 0.0)
    return (sigmas[:-1].astype(np.float32) * np.float32(train_steps)).astype(np.float64), sigmas


def dpmpp_levels(options: Config, count: int) -> tuple[Levels, Levels]:
    """Timesteps [count] and sigmas [count + 1]."""
    train_steps = options.get("num_train_timesteps", 1000)
    sigmas = 1 - np.linspace(1, 1 / train_steps, count + 1)
    sigmas = np.flip(_shifted(sigmas, flow_shift_of("dpmpp_2m", options)))[:-1]
    last = 0.0
    if options.get("final_sigmas_type") == "sigma_min":  # Diffusers takes it from the betas, a flow's too, in float32
        signal = np.float32(1) - np.float32(options.get("beta_start", 1e-4))
        last = float(np.sqrt((np.float32(1) - signal) / signal))
    return np.trunc(sigmas * train_steps), _as_stored(sigmas, last)


def log_snr(sigma: np.float64) -> np.float64:
    """The logarithm of signal over noise, infinite at a level of 0."""
    return np.float64(np.log(1 - sigma) - np.log(sigma))


def _shifted(sigmas: Any, shift: float) -> Any:
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def _stretched_to_terminal(sigmas: Levels, options: Config) -> Levels:
    """1 - sigma, scaled so that the last level is `shift_terminal`."""
    terminal = options.get("shift_terminal")
    if not terminal:
        return sigmas
    signal = 1 - sigmas
    if signal[-1] <= 0:
        raise ScheduleError(f"scheduler option shift_terminal is {terminal!r} and needs at least 2 inference steps")
    return np.asarray(1 - signal / (signal[-1] / (1 - terminal)))


def _as_stored(sigmas: Levels, last: float) -> Levels:
    """Diffusers keeps noise levels in float32; what is computed from them here is float64."""
    return np.append(sigmas, last).astype(np.float32).astype(np.float64)
