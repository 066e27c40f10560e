"""What the property tests of the rooms draw from: `tests/<room>/test_properties.py`."""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("repeatable")
SEED, SIZE = st.integers(0, 10_000), st.integers(2, 40)


def normal(seed: int, *shape: int) -> Tensor:
    """Standard normal values, float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
