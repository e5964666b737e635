"""The optimizer's parameter groups, and its fused kernel."""

from typing import Any

from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]  # exported, but not declared so
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Return the trainable parameters in one or two groups: without weight decay, and with the optimizer's.

    Norms, biases and all other vectors have no weight decay. Neither have the parameters that a submodule's method
    ``no_weight_decay()`` names, as timm's networks name their tokens and position embeddings.

    Raises:
        ValueError: If no parameter requires a gradient.

    Example:
        >>> [[tuple(p.shape) for p in group["params"]] for group in parameter_groups(nn.Linear(3, 2))]
        [[(2,)], [(2, 3)]]
    """
    exempt = {
        f"{path}.{name}".removeprefix(".")
        for path, part in module.named_modules()
        for name in getattr(part, "no_weight_decay", set)()
    }
    # timm only sorts the parameters by this value; the optimizer has its own.
    sorted_groups = param_groups_weight_decay(module, weight_decay=1.0, no_weight_decay_list=exempt)
    groups = [
        {"params": group["params"], **({} if group["weight_decay"] else {"weight_decay": 0.0})}
        for group in sorted_groups
        if group["params"]
    ]
    if not groups:
        raise ValueError("nothing to train: all parameters are frozen; unfreeze some with student.requires_grad_(True)")
    return groups


def use_fused_kernel(optimizer: Optimizer) -> None:
    """Have Adam, AdamW and SGD step with one kernel, unless an option says otherwise or a device has none.

    This sets only the option of the groups. An optimizer that is made with ``fused=True`` would also unscale the
    gradients itself, and Lightning refuses to clip those.

    Example:
        >>> import torch
        >>> optimizer = AdamW([nn.Parameter(torch.zeros(2))])
        >>> use_fused_kernel(optimizer)
        >>> optimizer.param_groups[0]["fused"]
        True
    """
    if not isinstance(optimizer, (Adam, AdamW, SGD)):
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters):
        return
    for options in (*optimizer.param_groups, optimizer.defaults):  # the defaults are for groups that are added later
        if options["fused"] is None and options["foreach"] is None and not options["differentiable"]:
            options["fused"] = True
