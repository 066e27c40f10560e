"""What no constructor takes: strings and classes in place of objects, and numbers that are not finite."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import lit_methods
from lit_methods import differential_privacy as privacy
from lit_methods.data_manipulation import ConditionalMaskedLM, Hypergradient, MaskedLMAugmenter
from lit_methods.data_manipulation.derivatives import FiniteDifference
from lit_methods.data_manipulation.peers import MetaWeightNet
from lit_methods.data_manipulation.steps import DecayingStep, LazyAdam, NormalizedStep, PlainStep, Softmax
from lit_methods.data_manipulation.strategies import LearnedWeights
from lit_methods.federated import Ditto, FedProx, NetworkModel, SpectralCoDistillation
from lit_methods.image_text import Whitening
from lit_methods.semi_supervised import FixAStep, FixMatch, IOMatch, MixMatch, OpenMatch, PULoss, Transformation
from lit_methods.semi_supervised.pu import RelevanceWeight
from lit_methods.semi_supervised.relevance import JointRelevance, UniformRelevance
from tests.entries.toys import toy_network

Make = Callable[..., object]

NOISE: Make = partial(lit_methods.BandedSquareRootNoise, epsilon=1.0)
USERS: Make = partial(lit_methods.UserLevelNoise, epsilon=1.0)
SERVER: Make = partial(
    privacy.PrivateServerUpdate,
    torch.zeros(3),
    privacy.Participation(4, 2, 2),
    expected_users=2,
    noise_multiplier=1.0,
)
CLASSIFIER: Make = partial(lit_methods.Classifier, num_classes=3)
SEMI_SUPERVISED: Make = partial(lit_methods.SemiSupervisedClassifier, num_features=4, num_classes=3)
FEDERATED: Make = partial(lit_methods.FederatedModule, toy_network(), 3)
DIFFUSION: Make = partial(lit_methods.DiscriminatorWeightedDiffusion, nn.Identity(), 3)
OBJECTS: list[tuple[Make, str]] = [
    (NOISE, "factorization"),
    (NOISE, "sampling"),
    (USERS, "factorization"),
    (SERVER, "factorization"),
    (SERVER, "workload"),
    (lit_methods.DataWeighting, "strategy"),
    (lit_methods.DataWeighting, "hypergradient"),
    (Hypergradient, "derivative"),
    (Hypergradient, "lookahead"),
    (LearnedWeights, "step"),
    (LearnedWeights, "normalization"),
    (lit_methods.LearnedAugmentation, "augmenter"),
    (ConditionalMaskedLM, "augmenter"),
    (partial(lit_methods.SpectralDistillation, 0.1), "teacher"),
    (lit_methods.SoftmaxApproximation, "codec"),
    (lit_methods.KnowledgeRerank, "data"),
    (lit_methods.KnowledgeRerank, "transform"),
    (lit_methods.MACK, "transform"),
    (lit_methods.MACK, "optimizer"),
    (CLASSIFIER, "network"),
    (partial(CLASSIFIER, toy_network()), "loss"),
    (partial(CLASSIFIER, toy_network()), "optimizer"),
    (partial(CLASSIFIER, toy_network()), "scheduler"),
    (lit_methods.AttentionTranslator, "network"),
    (SEMI_SUPERVISED, "backbone"),
    (partial(SEMI_SUPERVISED, nn.Flatten()), "strategy"),
    (partial(SEMI_SUPERVISED, nn.Flatten()), "optimizer"),
    (partial(lit_methods.RelevanceDiscriminator, toy_network()), "loss"),
    (partial(JointRelevance, toy_network()), "loss"),
    (FixAStep, "base"),
    (FEDERATED, "strategy"),
    (FEDERATED, "backend"),
    (DIFFUSION, "relevance"),
    (DIFFUSION, "transformation"),
    (Transformation, "class_choice"),
]


def _case(make: Make, name: str) -> Any:
    while isinstance(make, partial):
        make = make.func
    return f"{getattr(make, '__name__', make)}-{name}"


@pytest.mark.parametrize(("make", "name"), OBJECTS, ids=[_case(*each) for each in OBJECTS])
def test_a_name_is_no_object(make: Make, name: str) -> None:
    given: Any = 7 if name == "codec" else "sgd"  # codecs have names
    with pytest.raises(TypeError, match=rf"^{name}(={given!r}|=str| must be .*{given!r})") as refusal:
        make(**{name: given})
    assert "must be" in str(refusal.value) or "pass a" in str(refusal.value)


def test_a_class_is_no_object() -> None:
    with pytest.raises(TypeError, match=r"^strategy=<class .*FixMatch'> must be a Strategy, as FixMatch\(\)"):
        lit_methods.SemiSupervisedClassifier(nn.Flatten(), 4, 3, strategy=FixMatch)


NUMBERS: list[tuple[Make, str]] = [
    (lit_methods.BandedSquareRootNoise, "epsilon"),
    (lit_methods.BandedSquareRootNoise, "noise_multiplier"),
    (NOISE, "delta"),
    (NOISE, "max_grad_norm"),
    (lit_methods.UserLevelNoise, "epsilon"),
    (lit_methods.UserLevelNoise, "noise_multiplier"),
    (USERS, "max_norm"),
    (SERVER, "max_norm"),
    (LazyAdam, "lr"),
    (NormalizedStep, "lr"),
    (PlainStep, "lr"),
    (DecayingStep, "decay"),
    (DecayingStep, "floor"),
    (Softmax, "temperature"),
    (FiniteDifference, "radius"),
    (MetaWeightNet, "lr"),
    (MetaWeightNet, "weight_decay"),
    (LearnedWeights, "initial"),
    (LearnedWeights, "max_logit"),
    (partial(MaskedLMAugmenter, 2), "temperature"),
    (lit_methods.SpectralDistillation, "weight"),
    (FedProx, "mu"),
    (Ditto, "weight"),
    (SpectralCoDistillation, "generic_weight"),
    (SpectralCoDistillation, "personal_weight"),
    (NetworkModel, "latency_seconds"),
    (partial(lit_methods.SoftmaxApproximation, error_every_n_steps=1), "max_error"),
    (partial(lit_methods.SoftmaxApproximation, "auto"), "memory_target"),
    (lit_methods.MACK, "temperature"),
    (lit_methods.MACK, "modifier_weight"),
    (lit_methods.KnowledgeRerank, "alpha"),
    (lit_methods.KnowledgeRerank, "memory_mib"),
    (partial(Whitening, 4), "shrinkage"),
    (FixMatch, "unlabeled_weight"),
    (MixMatch, "temperature"),
    (MixMatch, "alpha"),
    (OpenMatch, "threshold"),
    (OpenMatch, "em_weight"),
    (OpenMatch, "socr_weight"),
    (IOMatch, "open_threshold"),
    (IOMatch, "open_weight"),
    (partial(FixAStep, FixMatch()), "temperature"),
    (partial(FixAStep, FixMatch()), "alpha"),
    (PULoss, "prior"),
    (partial(PULoss, 0.5), "beta"),
    (partial(PULoss, 0.5), "gamma"),
    (partial(RelevanceWeight, 0.5), "alpha"),
    (UniformRelevance, "value"),
    (Transformation, "strength"),
    (Transformation, "guidance_scale"),
]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize(("make", "name"), NUMBERS, ids=[_case(*each) for each in NUMBERS])
def test_numbers_are_finite_and_not_negative(make: Make, name: str, value: float) -> None:
    if name == "initial" and value < 0:
        make(**{name: value})
        return
    with pytest.raises(ValueError, match=rf"^{name}\b.*{value}"):
        make(**{name: value})


@pytest.mark.parametrize("names", ["cat", ["cat", 3]])
def test_class_names_are_a_list_of_names(names: Any) -> None:
    with pytest.raises(TypeError, match=r"^class_names="):
        lit_methods.SyntheticImageWriter("out", class_names=names)


@pytest.mark.parametrize("names", [["cat", "cat"], ["cat", "../dog"], ["cat", ""], ["cat", "shards"]])
def test_each_class_has_a_folder_of_its_own(names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^class_names=.*'cat'"):
        lit_methods.SyntheticImageWriter("out", class_names=names)


@pytest.mark.parametrize("betas", [(0.9,), (0.9, math.nan), (0.9, 0.99, 0.999)])
def test_adam_has_two_moments(betas: Any) -> None:
    with pytest.raises(ValueError, match=r"^betas=\(0.9"):
        LazyAdam(betas=betas)
