"""Optimiser and learning rate of a training, from the `train.*` keys."""

import torch
from torch import nn


def make_optimiser(method: nn.Module, options: dict) -> torch.optim.Optimizer:
    """The optimiser of the `train.*` keys."""
    parameters = list(method.parameters())
    fused = parameters[0].device.type in ("cpu", "cuda")  # one kernel for all of them
    rates = {"lr": options["learning_rate"], "weight_decay": options["weight_decay"], "fused": fused}
    if options["optimiser"] == "adam":
        return torch.optim.Adam(parameters, betas=(options["momentum"], 0.999), **rates)
    return torch.optim.SGD(parameters, momentum=options["momentum"], **rates)


def learning_rate(step: int, options: dict) -> float:
    """The rate of update `step` (from 0): a decay at every k * decay_every but the last [training 2]."""
    every = options["decay_every"] or max(options["steps"] // 10, 1)
    milestones = max(options["steps"] // every - 1, 0)
    return options["learning_rate"] * options["decay"] ** min(step // every, milestones)
