"""How large a base's networks are where it counts for time and memory, without running them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tabpfn import TabPFNClassifier
from tabpfn.preprocessing.ensemble import DEFAULT_N_ESTIMATORS

from tttabpfn.tabpfn_adapter.base import Base, model_bytes
from tttabpfn.tabpfn_adapter.row_embeddings import has_row_stage
from tttabpfn.tabpfn_adapter.selection import in_context_names


@dataclass(frozen=True)
class Sizes:
    """Sizes of a base's largest network, and of an ensemble of it.

    Parameters
    ----------
    cell_parameters : int
        Parameters that every cell passes: those of the row stage, or all where a network has none.
    row_parameters : int
        Parameters that every row passes: those of the in-context stage.
    cell_width, row_width : int
        Of a cell's and a row's embedding.
    layers : int
        In which rows attend to context rows.
    columns : int
        Columns of a table as the network sees it.
    members, adapting : int
        Ensemble members, and those of them that adapt.
    nbytes : int
        Of the network's parameters.
    has_row_stage : bool
        Whether rows are embedded one by one before they are compared.
    """

    cell_parameters: int
    row_parameters: int
    cell_width: int
    row_width: int
    layers: int
    columns: int
    members: int
    adapting: int
    nbytes: int
    has_row_stage: bool

    @classmethod
    def of(cls, estimator: TabPFNClassifier, base: Base, n_columns: int, max_members: int) -> Sizes:
        """Read sizes off a base.

        Parameters
        ----------
        estimator : TabPFNClassifier
            Unfitted.
        base : Base
            Its base.
        n_columns : int
            Of the table as the user gave it.
        max_members : int
            Members that adapt where the estimator leaves their number to TabPFN.

        Returns
        -------
        Sizes
        """
        model: Any = max(base.models, key=model_bytes)
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        staged = has_row_stage(model)
        behind = in_context_names(sizes) if staged else []
        rows = sum(sizes[name] for name in behind)
        width = int(getattr(model, "embedding_dim", getattr(model, "emsize", 128)))
        members = estimator.n_estimators
        left_open = isinstance(members, str)
        # Of wide tables every member sees a part.
        seen = min(n_columns, *(one.max_features_per_estimator for one in base.inference_config.PREPROCESS_TRANSFORMS))
        count = DEFAULT_N_ESTIMATORS if left_open else int(members)
        return cls(
            cell_parameters=sum(sizes.values()) - rows,
            row_parameters=rows,
            cell_width=int(getattr(model, "emsize", width)),
            row_width=width,
            layers=max(1, len(getattr(model, "icl_blocks", getattr(model, "blocks", ())))),
            columns=seen + _products(base.inference_config.POLYNOMIAL_FEATURES, seen),
            members=count,
            adapting=min(count, max_members) if left_open else count,
            nbytes=sum(model_bytes(one) for one in base.models),
            has_row_stage=staged,
        )


def _products(asked: Any, n_columns: int) -> int:
    """Products of two columns that TabPFN appends."""
    if asked == "no":
        return 0
    pairs = n_columns * (n_columns + 1) // 2
    return pairs if asked == "all" else min(int(asked), pairs)
