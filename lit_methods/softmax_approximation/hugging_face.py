"""The way into Hugging Face models: one attention function for all of them, with its mask function."""

from __future__ import annotations

import inspect
import sys
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lit_methods.softmax_approximation.approximation import Approximation
from lit_methods.softmax_approximation.attention import softmax_attention

IMPLEMENTATION = "softmax_approximation"
HANDLED = frozenset(
    ("module", "query", "key", "value", "attention_mask", "dropout", "scaling", "is_causal", "position_bias", "kwargs")
)
CHANGES_THE_MATHS = frozenset(("softcap", "s_aux", "sinks", "cache", "head_mask", "block_indices"))


class HuggingFaceRoute:
    """Puts our attention function in the place of a model's own, for as long as it is attached.

    Modules that are not selected go on with the function that the model had. A copy of the model that is made
    meanwhile computes exact attention.

    Args:
        model: A ``PreTrainedModel`` whose class takes part in transformers' attention interface.
        selected: Names by module, of the modules that may be covered.
        approximation: What to do there.

    Raises:
        MisconfigurationException: If the model does not let its attention be exchanged.
    """

    name = "hugging face"

    def __init__(self, model: Any, selected: dict[nn.Module, str], approximation: Approximation) -> None:
        _register()
        self.approximation = approximation
        self.names = WeakKeyDictionary(selected)
        self._configs = _configs(model)
        self._former = [config._attn_implementation_internal for config in self._configs]
        model.set_attn_implementation(IMPLEMENTATION)
        if model.config._attn_implementation != IMPLEMENTATION:
            raise MisconfigurationException(
                f"{type(model).__name__} does not let its attention be exchanged. Leave it to the saved-tensors route."
            )
        for module in model.modules():
            _ROUTES[module] = self

    def former_of(self, module: nn.Module) -> str:
        """The implementation that a module had; ``sdpa`` for all those that take masks of other kinds than ours."""
        formers = {id(config): former for config, former in zip(self._configs, self._former, strict=True)}
        return "eager" if formers.get(id(getattr(module, "config", None)), self._former[0]) == "eager" else "sdpa"

    def detach(self) -> None:
        """Gives the model its own attention back."""
        for config, former in zip(self._configs, self._former, strict=True):
            config._attn_implementation_internal = former
        for module in [module for module, route in _ROUTES.items() if route is self]:
            del _ROUTES[module]


_ROUTES: WeakKeyDictionary[nn.Module, HuggingFaceRoute] = WeakKeyDictionary()


def is_exchangeable(model: nn.Module) -> bool:
    """Whether a module is a Hugging Face model whose attention can be exchanged by configuration.

    Models without support for ``sdpa`` are not trusted: their own attention may be more than softmax(QK)V.
    """
    library = sys.modules.get("transformers")
    if library is None or not isinstance(model, library.PreTrainedModel):
        return False
    return bool(model._can_set_attn_implementation() and model._supports_sdpa)


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model that call the attention interface, by name."""
    return {name: module for name, module in model.named_modules() if _calls_interface(type(module))}


def _calls_interface(kind: type[nn.Module]) -> bool:
    if not _modelling(kind).startswith(("transformers.", "transformers_modules.")):
        return False
    try:
        return "attention_interface(" in inspect.getsource(kind.forward)
    except (OSError, TypeError):
        return False


def _modelling(kind: type[nn.Module]) -> str:
    """Name of the module where a class's forward is written, be it inherited."""
    return getattr(kind.forward, "__module__", "")


def _configs(model: Any) -> list[Any]:
    found = [model.config]
    for module in model.modules():
        found += [module.config] if hasattr(module, "config") and hasattr(module.config, "sub_configs") else []
    for config in found:
        found += [sub for key in config.sub_configs if (sub := getattr(config, key, None)) is not None]
    return list({id(config): config for config in found}.values())


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, attention_forward)
    AttentionMaskInterface.register(IMPLEMENTATION, attention_mask)


def attention_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Makes the boolean mask that ``sdpa`` takes, but a floating one if some query sees no key.

    Such queries attend evenly to all keys in eager attention; a boolean mask would make them NaN.
    """
    from transformers.masking_utils import eager_mask, sdpa_mask

    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    if mask is None or bool(mask.any(-1).all()):
        return mask
    return eager_mask(*args, **kwargs)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention function of transformers' interface.

    Args:
        module: The calling module.
        query: ``(B, H, T_q, d)``.
        key: ``(B, H_kv, T_k, d)``.
        value: ``(B, H_kv, T_k, d_v)``.
        attention_mask: Boolean (True: attend), floating (added), or None.
        dropout: Probability that a weight is dropped.
        scaling: Factor on the scores; None is ``d ** -0.5``.
        is_causal: Whether a missing mask stands for a causal one; None asks the module.
        position_bias: Added to the scores, ``(1, H, T_q, T_k)``; may require a gradient.
        **kwargs: What eager attention ignores too, and ``output_attentions``.

    Returns:
        The output ``(B, T_q, H, d_v)``, contiguous, and the weights if asked for.

    Raises:
        MisconfigurationException: If a keyword changes the maths.
    """
    _refuse_other_maths(module, kwargs)
    route = _ROUTES.get(module)
    former = partial(
        _former_forward,
        module,
        query,
        key,
        value,
        attention_mask,
        "sdpa" if route is None else route.former_of(module),
        dropout=dropout,
        scaling=scaling,
        is_causal=is_causal,
        position_bias=position_bias,
        **kwargs,
    )
    if route is not None and module not in route.names:
        return former()
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    config = getattr(module, "config", None)
    settings: dict[str, Any] = {
        "mask": _with_bias(attention_mask, position_bias),
        "is_causal": bool(causal) and attention_mask is None and query.shape[2] > 1,
        "dropout_p": dropout,
        "scale": scaling,
        "need_weights": bool(kwargs.get("output_attentions") or getattr(config, "output_attentions", False)),
    }
    if route is None:
        output, weights = softmax_attention(query, key, value, codec="recompute", **settings)
    else:
        output, weights = route.approximation.attend(
            route.names[module], route.name, lambda: _heads_first(former()), query, key, value, **settings
        )
    return output.transpose(1, 2), weights


def _heads_first(found: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    return found[0].transpose(1, 2), found[1]


def _with_bias(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    if bias is None:
        return mask
    if mask is None:
        return bias
    return bias.masked_fill(~mask, torch.finfo(bias.dtype).min) if mask.dtype == torch.bool else bias + mask


def _refuse_other_maths(module: nn.Module, kwargs: dict[str, Any]) -> None:
    """Refuses keywords that the model's eager attention names, or that are known, and that are not handled here."""
    for name in _named_by_eager(_modelling(type(module))) | CHANGES_THE_MATHS:
        if kwargs.get(name) is not None:
            raise MisconfigurationException(
                f"{type(module).__name__} passes {name}={kwargs[name]!r} to its attention, which changes what attention"
                f" computes and is not handled. Leave the module out with `modules=`, or set {name} to None."
            )


@cache
def _named_by_eager(modelling: str) -> frozenset[str]:
    eager = getattr(sys.modules[modelling], "eager_attention_forward", None)
    return frozenset() if eager is None else frozenset(inspect.signature(eager).parameters) - HANDLED


def _former_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    implementation: str,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What the model had before, fed with a mask of ours."""
    from transformers.masking_utils import causal_mask_function, eager_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if implementation != "eager":
        return ALL_ATTENTION_FUNCTIONS[implementation](module, query, key, value, mask, **kwargs)  # type: ignore[no-any-return]  # transformers does not type it
    smallest = torch.finfo(query.dtype).min
    causal = kwargs.pop("is_causal", None)
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if mask is None and causal and query.shape[2] > 1:
        mask = eager_mask(
            1,
            query.shape[2],
            key.shape[2],
            mask_function=causal_mask_function,
            dtype=query.dtype,
            device=query.device,
        )
    elif mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill_(~mask, smallest)
    if kwargs.get("position_bias") is None:
        kwargs.pop("position_bias", None)
    eager = sys.modules[_modelling(type(module))].eager_attention_forward
    return eager(module, query, key, value, mask, **kwargs)  # type: ignore[no-any-return]  # transformers does not type it
