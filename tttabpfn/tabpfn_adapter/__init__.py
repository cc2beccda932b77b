"""The only package that knows TabPFN's internals: base models, demonstration tensors, logits in one axis order.

Letters: M ensemble members, N demonstrations, n context rows, Q query rows, C prepared columns, K classes.
Logits are ``[M, Q, K]`` everywhere outside this package, classes in the order of ``classes_``.
"""

from tttabpfn.tabpfn_adapter.base import (
    Base,
    adaptable_shapes,
    fit_tabpfn,
    load_base,
    loaded_base,
    private_copies,
)
from tttabpfn.tabpfn_adapter.demonstrations import (
    Demonstrations,
    keep_row_embeddings,
    member_logits,
    prepare_demonstrations,
)
from tttabpfn.tabpfn_adapter.members import members_to_adapt, with_members
from tttabpfn.tabpfn_adapter.predictions import predict_with_embeddings, probabilities
from tttabpfn.tabpfn_adapter.refitted import can_be_refitted, refit_with_cache
from tttabpfn.tabpfn_adapter.row_embeddings import RowEmbeddings
from tttabpfn.tabpfn_adapter.wrapped import (
    check_estimator_settings,
    checkpoint_paths,
    declared_limits,
    default_estimator,
    max_context_rows,
    max_features,
    with_settled_seed,
)

__all__ = [
    "Base",
    "Demonstrations",
    "RowEmbeddings",
    "adaptable_shapes",
    "can_be_refitted",
    "check_estimator_settings",
    "checkpoint_paths",
    "declared_limits",
    "default_estimator",
    "fit_tabpfn",
    "keep_row_embeddings",
    "load_base",
    "loaded_base",
    "max_context_rows",
    "max_features",
    "member_logits",
    "members_to_adapt",
    "predict_with_embeddings",
    "prepare_demonstrations",
    "private_copies",
    "probabilities",
    "refit_with_cache",
    "with_members",
    "with_settled_seed",
]
