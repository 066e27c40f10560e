"""What clients do in a round: the interface, and the methods that exchange or keep whole models."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from lit_methods.errors import check_at_least
from lit_methods.federated.cohort import Cohort, Update
from lit_methods.federated.layout import ModelLayout
from lit_methods.federated.local_training import Models
from lit_methods.federated.penalties import ProximalPenalty


def check_not_negative(**values: float | None) -> None:
    """Refuses numbers that are negative or not finite; None passes."""
    for name, value in values.items():
        if value is not None:
            check_at_least(name, value)


class Strategy(ABC):
    """A method of federated learning, as the work of the clients in one round.

    Attributes:
        has_generic: Whether the server's model is a classifier by itself, so that its accuracy means something.
        keeps_personal: Whether clients keep a model of their own across rounds.
        personal_forward: Keyword arguments of the network's `forward` for personal models.
    """

    has_generic: ClassVar[bool] = True
    keeps_personal: ClassVar[bool] = True
    personal_forward: ClassVar[Mapping[str, Any]] = {}

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network that clients train, which may have more parts than the given one."""
        return network

    def shared(self, layout: ModelLayout) -> list[bool]:
        """Which parameters the server averages; the rest never leaves a client."""
        return [True] * len(layout.names)

    @abstractmethod
    def round(self, cohort: Cohort) -> Update:
        """Trains the clients of a round."""

    def personalize(self, cohort: Cohort) -> Models | None:
        """The personal models to evaluate, between two rounds; None where a method has none."""
        return cohort.personal


class FedAvg(Strategy):
    """McMahan et al. 2017: clients train what they received, the server averages.

    Args:
        fine_tune_epochs: Local epochs in which each client adapts the generic model before it is evaluated (FedAvg
            with fine-tuning); 0 evaluates no personal models.

    Raises:
        ValueError: If `fine_tune_epochs` is negative.
    """

    keeps_personal = False

    def __init__(self, fine_tune_epochs: int = 0) -> None:
        check_not_negative(fine_tune_epochs=fine_tune_epochs)
        self.fine_tune_epochs = fine_tune_epochs

    def round(self, cohort: Cohort) -> Update:
        """See `Strategy.round`."""
        return Update(uploads=cohort.train("generic", cohort.received))

    def personalize(self, cohort: Cohort) -> Models | None:
        """See `Strategy.personalize`: fine-tuned copies of the generic model, which are not kept."""
        if not self.fine_tune_epochs:
            return None
        return cohort.train("fine_tuning", cohort.received, epochs=self.fine_tune_epochs)


class FedProx(FedAvg):
    """Li et al. 2020: FedAvg with `(mu / 2) ||w - w_received||^2` in the local objective.

    Args:
        mu: Factor of the proximal term.
        fine_tune_epochs: See `FedAvg`.

    Raises:
        ValueError: If an argument is negative or not finite.
    """

    def __init__(self, mu: float = 0.1, fine_tune_epochs: int = 0) -> None:
        super().__init__(fine_tune_epochs)
        check_not_negative(mu=mu)
        self.mu = mu

    def round(self, cohort: Cohort) -> Update:
        """See `Strategy.round`."""
        penalty = ProximalPenalty(cohort.received.weights, self.mu)
        return Update(uploads=cohort.train("generic", cohort.received, penalties=[penalty]))


class LocalOnly(Strategy):
    """Each client trains a model of its own, in the rounds in which it is sampled; nothing is exchanged.

    Args:
        personal_epochs: Local epochs in a round; None takes those of the run.

    Raises:
        ValueError: If `personal_epochs` is negative.
    """

    has_generic = False

    def __init__(self, personal_epochs: int | None = None) -> None:
        check_not_negative(personal_epochs=personal_epochs)
        self.personal_epochs = personal_epochs

    def shared(self, layout: ModelLayout) -> list[bool]:
        """See `Strategy.shared`."""
        return [False] * len(layout.names)

    def round(self, cohort: Cohort) -> Update:
        """See `Strategy.round`."""
        return Update(personal=cohort.train("personal", cohort.personal, epochs=self.personal_epochs))


class Ditto(Strategy):
    """Li et al. 2021: FedAvg, and personal models held near it by `(weight / 2) ||v - w_received||^2`.

    Args:
        weight: Factor of the proximal term.
        personal_epochs: Local epochs of the personal stage; None takes those of the run.

    Raises:
        ValueError: If an argument is negative or not finite.
    """

    def __init__(self, weight: float = 0.1, personal_epochs: int | None = None) -> None:
        check_not_negative(weight=weight, personal_epochs=personal_epochs)
        self.weight, self.personal_epochs = weight, personal_epochs

    def round(self, cohort: Cohort) -> Update:
        """See `Strategy.round`."""
        uploads = cohort.train("generic", cohort.received)
        penalty = ProximalPenalty(cohort.received.weights, self.weight)
        return Update(
            uploads, cohort.train("personal", cohort.personal, epochs=self.personal_epochs, penalties=[penalty])
        )
