"""The update at the end of a training step; numbers that are none leave the weights as they are."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def update_if_finite(
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    total: Tensor,
    *,
    clip_norm: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Clips and steps, unless the loss or a gradient is no finite number: then no weight changes.

    Waits for the device only where the optimizer is not fused.

    Args:
        parameters: all that the optimizer trains, after the backward pass of the scaled loss.
        scaler: not enabled but in float16, where it also adapts its scale.
        total: the loss without its scale, float32 [], detached.
        clip_norm: largest L2 norm of the whole gradient; 0: unlimited.

    Returns:
        norms: L2 norm of each parameter's gradient without the scale, float32 [parameters], and
        is_made: whether the step was made, bool []. Both are on the device.
    """
    for parameter in parameters:
        if parameter.grad is None:  # it had no part in the losses of this batch
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in parameters if p.grad is not None]
    scale = scaler.scale(torch.ones((), device=total.device))  # 1 unless in float16
    norms = torch.stack(torch._foreach_norm(gradients)) / scale
    norm = torch.linalg.vector_norm(norms)
    is_made = torch.isfinite(norm) & torch.isfinite(total)
    if scaler.is_enabled():
        # The scaler looks at gradients only; an infinite loss can have finite ones.
        gradients[0].add_(torch.where(torch.isfinite(total), 0.0, torch.nan))
        scaler.unscale_(optimizer)
    if clip_norm:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    if scaler.is_enabled():
        scaler.step(optimizer)
        scaler.update()
    elif optimizer.defaults["fused"]:
        optimizer.found_inf = (~is_made).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif is_made:  # waits for the device: without a fused optimizer there is no other way
        optimizer.step()
    return norms, is_made
