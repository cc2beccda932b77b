r"""The sum-state memory: linear fast weights that are a function of sums over rows, so that rows can come and go.

With start logits :math:`z` from a model that stands still, one Newton step on the cross-entropy from zero weights is

.. math:: W = \frac{K - 1}{K} G (C + \lambda n D)^{-1}, \quad
   G = \sum_n w_n (e_{y_n} - p_n) k_n^\top, \quad C = \sum_n w_n h_n k_n k_n^\top

with :math:`p = \mathrm{softmax}(z)` and :math:`h` its mean curvature over the classes. :math:`G`, :math:`C` and
:math:`n` add up: over batches in any order, over estimators, and with a minus sign over rows that are taken back. It is
LaCT's update with one chunk that never ends (Zhang et al. 2025, arXiv 2505.23884, its linear fast weights), and the
one-step theory of test-time training (Gozeten et al. 2025, arXiv 2503.11842) with all rows as training rows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tttabpfn.memory.linear import BIAS_PENALTY

MIN_CURVATURE = 1e-3
"""Least curvature of a row: one that the model is sure of and wrong about must not move everything."""


@dataclass(frozen=True)
class Sums:
    """Sums over the rows of each fold, in double precision.

    Parameters
    ----------
    moments : Tensor of shape (F, M, E, E)
        Second moments of the keys, weighted by curvature.
    gradients : Tensor of shape (F, M, K, E)
        Negative gradients of the cross-entropy at zero weights.
    rows : Tensor of shape (F,)
        Weights of the rows, summed.
    """

    moments: Tensor
    gradients: Tensor
    rows: Tensor

    @classmethod
    def zero(cls, n_folds: int, n_members: int, n_classes: int, width: int) -> Sums:
        """Sums over no rows."""
        return cls(
            torch.zeros(n_folds, n_members, width, width, dtype=torch.float64),
            torch.zeros(n_folds, n_members, n_classes, width, dtype=torch.float64),
            torch.zeros(n_folds, dtype=torch.float64),
        )

    @classmethod
    def of(cls, keys: Tensor, start: Tensor, labels: Tensor, folds: Tensor, weights: Tensor, n_folds: int) -> Sums:
        """Sum over rows.

        Parameters
        ----------
        keys : Tensor of shape (M, N, E)
            The last one is 1.
        start : Tensor of shape (M, N, K)
            Logits that the memory adds to.
        labels, folds : Tensor of shape (N,), int64
        weights : Tensor of shape (N,)
        n_folds : int

        Returns
        -------
        Sums

        Examples
        --------
        >>> import torch
        >>> keys, start = torch.ones(1, 4, 1), torch.zeros(1, 4, 2)
        >>> labels, folds = torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 1])
        >>> sums = Sums.of(keys, start, labels, folds, torch.ones(4), n_folds=2)
        >>> sums.gradients[:, 0, :, 0].tolist()
        [[0.0, 0.0], [-1.0, 1.0]]
        """
        keys, shares, weights = keys.double().cpu(), start.double().cpu().softmax(dim=-1), weights.double().cpu()
        labels, folds = labels.cpu(), folds.cpu()
        n_members, _, width = keys.shape
        n_classes = shares.shape[2]
        residuals = torch.nn.functional.one_hot(labels, n_classes) - shares
        curvatures = curvature(shares) * weights
        found = cls.zero(n_folds, n_members, n_classes, width)
        for fold in range(n_folds):
            own = folds == fold
            of_fold = keys[:, own]
            found.moments[fold] = (of_fold * curvatures[:, own, None]).mT @ of_fold
            found.gradients[fold] = (residuals[:, own] * weights[own, None]).mT @ of_fold
            found.rows[fold] = weights[own].sum()
        return found

    def plus(self, other: Sums, sign: float = 1.0) -> Sums:
        """These sums and others; with a sign of -1, without the others."""
        return Sums(*(getattr(self, name) + sign * getattr(other, name) for name in _NAMES))

    def times(self, factor: float) -> Sums:
        """The same with every row weighing so much more or less."""
        return Sums(*(factor * getattr(self, name) for name in _NAMES))

    def weights(self, penalty: float, without: int | None = None) -> Tensor:
        """Linear fast weights of shape (M, K, E), float32, from all folds, or from all but one.

        Parameters
        ----------
        penalty : float
            L2 penalty per row, above 0; `BIAS_PENALTY` of it on the constant key.
        without : int, optional
            The fold that is left out.
        """
        kept = [fold for fold in range(len(self.rows)) if fold != without]
        moments, gradients = self.moments[kept].sum(dim=0), self.gradients[kept].sum(dim=0)
        n_rows, n_classes = float(self.rows[kept].sum()), gradients.shape[1]
        if n_rows <= 0.0:
            return torch.zeros_like(gradients, dtype=torch.float32)
        columns = torch.ones(moments.shape[-1], dtype=torch.float64)
        columns[-1] = BIAS_PENALTY
        bound = moments + torch.diag(penalty * n_rows * columns)
        step = torch.cholesky_solve(gradients.mT, torch.linalg.cholesky(bound)).mT
        return ((n_classes - 1) / n_classes * step).float()

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        return {name: getattr(self, name) for name in _NAMES}

    @property
    def nbytes(self) -> int:
        """Size in bytes; it does not depend on the rows."""
        return sum(value.nbytes for value in self.tensors().values())


_NAMES = tuple(field.name for field in fields(Sums))


def curvature(shares: Tensor) -> Tensor:
    """Curvature that stands for all classes of a row, from its class shares (..., K)."""
    return (shares * (1.0 - shares)).mean(dim=-1).clamp_min(MIN_CURVATURE)
