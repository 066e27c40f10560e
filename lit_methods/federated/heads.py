"""Methods that split the network into a body that is shared and a head that stays with the client."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from lit_methods.federated.cohort import Cohort, Update
from lit_methods.federated.layout import ModelLayout
from lit_methods.federated.local_training import Models
from lit_methods.federated.strategies import Strategy, check_not_negative


def head_of(network: nn.Module, head: str | None) -> str:
    """Name of the head: the given one, or the last layer that has parameters.

    Raises:
        ValueError: If there is no such part, or it is the whole network.
    """
    if head is None:
        layers = [
            name for name, layer in network.named_modules() if next(layer.parameters(recurse=False), None) is not None
        ]
        head = layers[-1] if layers else ""
    if not head or head not in dict(network.named_modules()):
        parts = [name for name, _ in network.named_modules() if name]
        raise ValueError(f"head={head!r} is none of the network's parts {parts}.")
    return head


class FedRep(Strategy):
    """Collins et al. 2021: a shared body, a private head; the head is trained first, then the body.

    The body alone classifies nothing, so no accuracy of a generic model is reported.

    Args:
        head: Name of the network's part that stays private; None for the last layer with parameters.
        head_epochs: Local epochs of the head; None takes those of the run.
        body_epochs: Local epochs of the body; None takes those of the run.

    Raises:
        ValueError: If a number of epochs is negative.
    """

    has_generic = False

    def __init__(self, head: str | None = None, head_epochs: int | None = None, body_epochs: int | None = None) -> None:
        check_not_negative(head_epochs=head_epochs, body_epochs=body_epochs)
        self.head, self.head_epochs, self.body_epochs = head, head_epochs, body_epochs
        self._prefix = ""

    def wrap(self, network: nn.Module) -> nn.Module:
        """See `Strategy.wrap`: the network itself, whose head is looked up."""
        self._prefix = head_of(network, self.head) + "."
        return network

    def shared(self, layout: ModelLayout) -> list[bool]:
        """See `Strategy.shared`: all but the head."""
        return [not name.startswith(self._prefix) for name in layout.names]

    def round(self, cohort: Cohort) -> Update:
        """See `Strategy.round`."""
        body = cohort.shared
        with_head = cohort.train("head", cohort.combined(), epochs=self.head_epochs, trained=~body)
        models = cohort.train("body", with_head, epochs=self.body_epochs, trained=body)
        return Update(models, models)

    def personalize(self, cohort: Cohort) -> Models:
        """See `Strategy.personalize`: the server's body with each client's head."""
        return cohort.combined()


class PersonalHead(nn.Module):
    """A network and a second head on its features; personal logits are the sum of both heads'.

    The features and the first head's logits are constants for the second head.

    Args:
        network: The network.
        head: Name of its head, a module that is called with the features.
    """

    def __init__(self, network: nn.Module, head: str) -> None:
        super().__init__()
        self.network, self.head = network, head
        self.personal_head = copy.deepcopy(network.get_submodule(head))

    def forward(self, inputs: Tensor, personal: bool = False) -> Tensor:
        """Logits `(B, C)` of the network, or with the personal head's added."""
        if not personal:
            return cast(Tensor, self.network(inputs))
        features: list[Tensor] = []
        layer = self.network.get_submodule(self.head)
        hook = layer.register_forward_pre_hook(lambda _, arguments: features.append(arguments[0]))
        try:
            logits = cast(Tensor, self.network(inputs))
        finally:
            hook.remove()
        return logits.detach() + cast(Tensor, self.personal_head(features[0].detach()))


class FedRoD(Strategy):
    """Chen & Chao 2022: a generic model trained by a balanced softmax, and a private head on its features.

    Each client trains the generic model with `log(class frequency)` added to its logits, sends it, and then trains
    its own head on the features of the model it sent, by the plain loss of the sum of both heads. (The authors' code
    alternates the two updates within a batch.)

    Args:
        head: Name of the network's head; None for the last layer with parameters.
        head_epochs: Local epochs of the private head; None takes those of the run.

    Raises:
        ValueError: If `head_epochs` is negative.
    """

    personal_forward: ClassVar[Mapping[str, Any]] = {"personal": True}

    def __init__(self, head: str | None = None, head_epochs: int | None = None) -> None:
        check_not_negative(head_epochs=head_epochs)
        self.head, self.head_epochs = head, head_epochs

    def wrap(self, network: nn.Module) -> nn.Module:
        """See `Strategy.wrap`: the network with a second head."""
        return PersonalHead(network, head_of(network, self.head))

    def shared(self, layout: ModelLayout) -> list[bool]:
        """See `Strategy.shared`: all but the second head."""
        return [not name.startswith("personal_head.") for name in layout.names]

    def round(self, cohort: Cohort) -> Update:
        """See `Strategy.round`."""
        counts = cohort.class_counts.to(cohort.received.weights.dtype)
        # A class that a client lacks would have the offset -inf; half an example keeps it finite.
        offsets = torch.log(counts.clamp_min(0.5) / counts.sum(dim=1, keepdim=True))
        generic = cohort.train("generic", cohort.combined(), trained=cohort.shared, logit_offsets=offsets)
        models = cohort.train(
            "personal", generic, epochs=self.head_epochs, trained=~cohort.shared, forward=self.personal_forward
        )
        return Update(models, models)

    def personalize(self, cohort: Cohort) -> Models:
        """See `Strategy.personalize`: the server's network with each client's head."""
        return cohort.combined()
