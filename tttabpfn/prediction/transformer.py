"""The estimator's methods that embed rows: `transform` and `fit_transform`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from tttabpfn.inputs import data
from tttabpfn.prediction.lookup import Fitted, Lookup


class EmbeddingMixin(ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """Embeds rows with the networks that predict."""

    _fitted: Fitted
    _lookup: Callable[[], Lookup]

    def transform(self, X: Any) -> NDArray[np.floating[Any]]:
        """Embed rows with the networks that predict, given the context, for plots and other models.

        A row that was given to `fit` may find itself in the context and so its own label in the embedding; for those
        use `fit_transform`, as a pipeline does.

        Parameters
        ----------
        X : array-like or frame of shape (n_rows, n_features)
            Rows like those given to `fit`.

        Returns
        -------
        ndarray of shape (n_rows, n_members * n_dimensions)
            The ensemble members' embeddings side by side.
        """
        check_is_fitted(self, "classes_")
        rows = data.check_rows(X, estimator=self, min_rows=1)
        validate_data(self, X, skip_check_array=True, reset=False)
        rows = self._fitted.columns.read(rows)
        return self._lookup().embed(rows)

    def fit_transform(self, X: Any, y: Any, **fit_params: Any) -> NDArray[np.floating[Any]]:
        """Fit, and embed the same rows, each with a context that it is not part of.

        Parameters
        ----------
        X, y : array-like of shape (n_rows, n_features), (n_rows,)
            As for `fit`.
        **fit_params : dict
            Further parameters of `fit`.

        Returns
        -------
        ndarray of shape (n_rows, n_members * n_dimensions)
            What `transform` returns for other rows. It differs from ``fit(X, y).transform(X)``, where rows of the
            context see their own labels.
        """
        fitted: EmbeddingMixin = self.fit(X, y, **fit_params)
        return fitted._lookup().embed_demonstrations()

    @property
    def _n_features_out(self) -> int:
        return self._lookup().embed(data.take_rows(self._fitted.rows, np.arange(1))).shape[1]
