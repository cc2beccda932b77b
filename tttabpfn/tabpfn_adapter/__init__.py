"""The only package that knows TabPFN's internals: base models, demonstration tensors, logits in one axis order.

Letters: M ensemble members, N demonstrations, n context rows, Q query rows, C prepared columns, K classes.
Logits are ``[M, Q, K]`` everywhere outside this package, classes in the order of ``classes_``.
"""

from tttabpfn.tabpfn_adapter.base import Base, adaptable_names, load_base, loaded_base, model_bytes, private_copies
from tttabpfn.tabpfn_adapter.demonstrations import (
    Demonstrations,
    MemberOutput,
    encode_rows,
    keep_row_embeddings,
    member_logits,
    prepare_demonstrations,
)
from tttabpfn.tabpfn_adapter.estimator import (
    check_estimator_settings,
    declared_limits,
    default_estimator,
    max_context_rows,
    max_features,
    with_dates,
    with_settled_seed,
)
from tttabpfn.tabpfn_adapter.fitting import (
    can_be_refitted,
    fit_tabpfn,
    members_to_adapt,
    refit_with_cache,
    with_members,
)
from tttabpfn.tabpfn_adapter.many_classes import code_note, load_base_for
from tttabpfn.tabpfn_adapter.predictions import (
    averaged,
    category_positions,
    finished,
    predict_with_embeddings,
    probabilities,
)
from tttabpfn.tabpfn_adapter.row_embeddings import RowEmbeddings, matching_row_embeddings
from tttabpfn.tabpfn_adapter.selection import NAMED_SELECTIONS, select_names
from tttabpfn.tabpfn_adapter.sizes import Sizes

__all__ = [
    "NAMED_SELECTIONS",
    "Base",
    "Demonstrations",
    "MemberOutput",
    "RowEmbeddings",
    "Sizes",
    "adaptable_names",
    "averaged",
    "can_be_refitted",
    "category_positions",
    "check_estimator_settings",
    "code_note",
    "declared_limits",
    "default_estimator",
    "encode_rows",
    "finished",
    "fit_tabpfn",
    "keep_row_embeddings",
    "load_base",
    "load_base_for",
    "loaded_base",
    "matching_row_embeddings",
    "max_context_rows",
    "max_features",
    "member_logits",
    "members_to_adapt",
    "model_bytes",
    "predict_with_embeddings",
    "prepare_demonstrations",
    "private_copies",
    "probabilities",
    "refit_with_cache",
    "select_names",
    "with_dates",
    "with_members",
    "with_settled_seed",
]
