"""Accuracies against sums over examples."""

import math

import pytest
import torch

from lit_methods.federated.evaluation import FederatedAccuracy

LABELS = torch.tensor([0, 0, 1, 1, 1, 2, 0, 2])
COUNTS = torch.tensor([[4, 0, 0], [1, 3, 0], [0, 2, 2]])
GENERIC = torch.tensor([1, 1, 0, 0, 1, 1, 0, 0]).bool()
PERSONAL = torch.tensor([[1, 1, 0, 0, 0, 0, 1, 0], [1, 0, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 1, 0, 1]]).bool()
MEMBERS = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0], [0, 0, 1]]).bool()


def _expected(correct: torch.Tensor, i: int) -> float:
    share = COUNTS[i] / COUNTS[i].sum()
    return sum(float(share[c]) * float(correct[c == LABELS].float().mean()) for c in range(3))


def _filled() -> FederatedAccuracy:
    accuracy = FederatedAccuracy(COUNTS, torch.device("cpu"))
    for rows in torch.arange(8).split(3):
        accuracy.add_batch(LABELS[rows], MEMBERS[rows])
        accuracy.add_generic(GENERIC[rows], LABELS[rows], MEMBERS[rows])
        for clients in (torch.tensor([2, 0]), torch.tensor([1])):
            accuracy.add_personal(PERSONAL[clients][:, rows], LABELS[rows], MEMBERS[rows], clients)
    return accuracy


def test_figures_are_sums_over_examples() -> None:
    accuracy = _filled()
    local = [_expected(PERSONAL[i], i) for i in range(3)]
    mean = sum(local) / 3
    assert accuracy.local_accuracies().tolist() == pytest.approx(local)
    generic, personal = accuracy.generic_figures(), accuracy.personal_figures()
    assert generic["generic_acc"] == pytest.approx(float(GENERIC.float().mean()))
    assert generic["generic_acc_local"] == pytest.approx(sum(_expected(GENERIC, i) for i in range(3)) / 3)
    drawn = [float(GENERIC[MEMBERS[:, i]].float().mean()) for i in range(3)]
    assert generic["generic_acc_drawn"] == pytest.approx(sum(drawn) / 3)
    assert personal["personal_acc"] == pytest.approx(mean)
    assert personal["personal_acc_weighted"] == pytest.approx(
        sum(a * w for a, w in zip(local, [4, 4, 4], strict=True)) / 12
    )
    assert personal["personal_acc_std"] == pytest.approx(math.sqrt(sum((a - mean) ** 2 for a in local) / 3))
    assert personal["personal_acc_worst_tenth"] == pytest.approx(min(local))
    drawn = [float(PERSONAL[i][MEMBERS[:, i]].float().mean()) for i in range(3)]
    assert personal["personal_acc_drawn"] == pytest.approx(sum(drawn) / 3)


def test_empty_local_test_sets_and_untested_classes_are_left_out() -> None:
    accuracy = FederatedAccuracy(torch.tensor([[1, 1, 0], [0, 0, 5]]), torch.device("cpu"))
    labels, members = torch.tensor([0, 1]), torch.tensor([[True, False], [True, False]])
    accuracy.add_batch(labels, members)
    accuracy.add_personal(torch.tensor([[True, False], [True, True]]), labels, members, torch.tensor([0, 1]))
    figures = accuracy.personal_figures()
    assert figures["personal_acc"] == pytest.approx(0.5)
    assert figures["personal_acc_drawn"] == pytest.approx(0.5)
    assert math.isnan(accuracy.local_accuracies()[1])
