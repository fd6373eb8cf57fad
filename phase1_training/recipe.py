"""How a run is optimised: the recipe, its optimizer, its learning rate and the averaged weights."""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN

from common.cli import UserError

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
EMA_RAMP_STEPS = 10  # the average follows the first steps closely, then ever more slowly


@dataclass(frozen=True)
class Recipe:
    """How a run is optimised. `learning_rate` is reached after `warmup_steps` linear steps."""

    epochs: int
    batch_size: int  # images of one optimizer step on one rank
    accumulate: int  # parts a batch is computed in, one after the other, to save memory
    optimizer: str  # "sgd" or "adamw"
    learning_rate: float
    momentum: float
    weight_decay: float
    schedule: str  # "step" (times gamma every step_size epochs) or "cosine" (to zero)
    step_size: int
    gamma: float
    warmup_steps: int
    clip_norm: float  # largest L2 norm of the gradient; 0: unlimited
    ema_decay: float  # of the exponential moving average of the weights; 0: none is kept
    trainable_stages: int | None  # of the backbone, from its end; None: what the weights came with
    patience: int  # epochs without a better map after which the run ends; 0: never
    amp: str  # "off", "bf16" or "fp16"
    min_sizes: tuple[int, ...]  # short sides after the resize, px; each batch takes one of them
    color_jitter: float  # largest relative change of brightness, contrast and saturation
    crop_probability: float  # how often a random part of the image is trained on
    keep_zeros: bool = False  # weights that are zero at the start stay zero: a pruned model


def build_optimizer(
    model: FasterRCNN, recipe: Recipe, device: torch.device
) -> torch.optim.Optimizer:
    """SGD (Nesterov off, as in the paper) or AdamW (https://arxiv.org/abs/1711.05101), as one fused
    kernel where the device has one.

    Their state is made now, not at the first step: memory that does not suffice shows before
    anything is trained, and a fused SGD whose first step is skipped would start with a momentum of
    whatever was in memory.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    fused = device.type in ("cpu", "cuda")
    if recipe.optimizer == "adamw":
        adamw = torch.optim.AdamW(
            parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=fused
        )
        for p in parameters:
            moments = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
            step = torch.zeros((), device=p.device if fused else None)
            adamw.state[p].update({"step": step, **moments})
        return adamw
    sgd = torch.optim.SGD(
        parameters,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        fused=fused,
    )
    if recipe.momentum:
        for p in parameters:
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return sgd


def hold_zeros(parameters: Iterable[nn.Parameter]) -> None:
    """Lets weights that are zero now stay so: their gradients are zero from now on.

    Neither optimizer moves such a weight: momentum and moments begin at zero, and weight decay
    takes a share of nothing. Biases and normalisation, which begin at zero, are left alone.
    """
    for parameter in parameters:
        if parameter.ndim > 1:
            is_kept = parameter.detach() != 0
            parameter.register_hook(lambda gradient, is_kept=is_kept: gradient * is_kept)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, counted from 0 over the whole run: warm-up times schedule."""
    warmup = min(1.0, (step + 1) / (recipe.warmup_steps + 1))
    if recipe.schedule == "cosine":
        progress = step / max(1, recipe.epochs * steps_per_epoch)
        factor = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    else:
        factor = recipe.gamma ** (step // steps_per_epoch // recipe.step_size)
    return recipe.learning_rate * warmup * factor


def set_trainable_stages(model: FasterRCNN, stages: int) -> None:
    """Trains the last `stages` of the backbone's stages and keeps the earlier ones as they are.

    0 trains the feature pyramid and the heads only. Early stages hold edges and textures that
    serve any data; with few images it is better not to train them.

    Raises:
        UserError: the backbone has fewer stages.
    """
    body = model.backbone.body
    groups = _stages(body)
    if stages > len(groups):
        what = f"the backbone has {len(groups)} stages"
        raise UserError(f"--trainable-stages {stages}", what, f"give 0 to {len(groups)}")
    first = len(groups) - stages
    for index, group in enumerate(groups):
        for module in group:
            module.requires_grad_(index >= first)


def _stages(body: nn.Module) -> list[list[nn.Module]]:
    """The backbone's modules from input to output, cut where the resolution is halved."""
    stages: list[list[nn.Module]] = [[]]
    for name, module in body.named_children():
        # ResNets name their stages; torchvision marks the halving blocks of MobileNets.
        if name.startswith("layer") or getattr(module, "_is_cn", False):
            stages.append([])
        stages[-1].append(module)
    return stages


class ModelEMA:
    """Exponential moving average of the weights (Polyak & Juditsky 1992), a second model beside the
    trained one. It lags behind by about 1 / (1 - decay) steps and is steadier.

    Attributes:
        decay: share of the old average kept at each step, once the first steps are over.
        parameters: the averaged parameters, in the order of `model.parameters()`.
    """

    def __init__(self, model: FasterRCNN, decay: float):
        self.decay = decay
        self.parameters = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self, model: FasterRCNN, step: int) -> None:
        """Takes in the weights after a step, which is counted from 0 over the whole run."""
        decay = min(self.decay, (1 + step) / (EMA_RAMP_STEPS + step))
        current = [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(self.parameters, current, 1 - decay)

    def averaged_model(self, model: FasterRCNN) -> FasterRCNN:
        """A copy of the model with the averaged weights; running statistics are the model's."""
        averaged = copy.deepcopy(model)
        for parameter, value in zip(averaged.parameters(), self.parameters, strict=True):
            parameter.data.copy_(value)
        return averaged

    def state_dict(self) -> dict[str, Any]:
        return {"parameters": [p.cpu() for p in self.parameters]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for parameter, value in zip(self.parameters, state["parameters"], strict=True):
            parameter.copy_(value)
