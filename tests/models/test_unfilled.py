"""Networks without values, and functions that a library keeps from meanwhile."""

import torch
from torch import nn

from snapgen_deploy.models.unfilled import without_storage


def test_what_is_built_has_shapes_alone_and_later_networks_have_values():
    before = nn.init.uniform_
    with without_storage():
        built = nn.Linear(3, 4)
        kept = nn.init.uniform_
    assert built.weight.is_meta
    assert built.weight.shape == (4, 3)
    assert nn.init.uniform_ is before
    assert float(kept(torch.zeros(100), 1, 2).min()) >= 1  # as transformers keeps it, if it is imported there
    assert float(nn.Linear(3, 4).weight.detach().std()) > 0
