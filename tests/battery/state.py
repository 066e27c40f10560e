"""What a run leaves behind, in forms that `==` compares bit for bit."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from tests.entries.toys import Parts


def plain(state: Any) -> Any:
    """Nested containers with each tensor as a list."""
    return apply_to_collection(state, Tensor, Tensor.tolist)


def outcome(parts: Parts, trainer: Trainer) -> dict[str, Any]:
    """Weights, optimizer and callback states after a fit."""
    return {
        "weights": plain(parts.module.state_dict()),
        "optimizers": plain([optimizer.state_dict() for optimizer in trainer.optimizers]),
        "callbacks": plain([callback.state_dict() for callback in parts.callbacks]),
    }


def traces(module: LightningModule) -> dict[str, Any]:
    """Everything that a callback could leave on a module: attributes, hooks, switches, parameters, state-dict keys."""
    found: dict[str, Any] = {"state_dict": list(module.state_dict())}
    for name, layer in module.named_modules():
        found[f"attributes of {name}"] = sorted(vars(layer))
        found[f"hooks of {name}"] = {key: len(hooks) for key, hooks in vars(layer).items() if key.endswith("hooks")}
        found[f"switches of {name}"] = {key: value for key, value in vars(layer).items() if isinstance(value, bool)}
        found[f"class of {name}"] = type(layer)
        found[f"forward of {name}"] = layer.forward.__func__
    for name, p in module.named_parameters():
        hooks = (p._backward_hooks, p._post_accumulate_grad_hooks)
        found[f"parameter {name}"] = (id(p), type(p), p.requires_grad, p.dtype, sorted(vars(p)), *map(bool, hooks))
    return found
