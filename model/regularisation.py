"""Mini-batch-aware regularisation (paper section 5.1, equations 4 to 7).

L2 on an embedding table, paid only by the rows that occur in the mini-batch: row j gets
``lambda * alpha_mj / n_j * w_j`` added to its gradient, alpha_mj = 1 when j occurs in mini-batch m
and n_j the number of samples in which j occurs. Rows that do not occur are not touched.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mini_batch_aware(weight: Tensor, counts: Tensor, strength: float) -> None:
    """Add the penalty to ``weight.grad``, which is sparse and holds just the rows that occur.

    weight (rows, dim), counts (rows,): n_j over the whole training set. A parameter without a
    gradient is left alone.
    """
    if weight.grad is None:
        return
    gradient = weight.grad.coalesce()
    rows = gradient.indices()[0]
    decay = strength / counts[rows].clamp(min=1).to(weight.dtype)
    values = gradient.values() + decay[:, None] * weight.detach()[rows]
    weight.grad = torch.sparse_coo_tensor(
        gradient.indices(), values, gradient.shape, is_coalesced=True, check_invariants=False
    )
