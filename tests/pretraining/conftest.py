"""A configuration small enough to train in a test."""

import pytest

from tttabpfn.pretraining.config import parse_config


def tiny_values():
    return {
        "architecture": "tabpfn_v3",
        "seed": 3,
        "workers": 0,
        "model": {
            "max_num_classes": 4,
            "num_buckets": 0,
            "embed_dim": 16,
            "nlayers": 2,
            "dist_embed_num_blocks": 1,
            "dist_embed_num_heads": 2,
            "dist_embed_num_inducing_points": 4,
            "feat_agg_num_blocks": 1,
            "feat_agg_num_heads": 2,
            "feat_agg_num_cls_tokens": 2,
            "icl_num_heads": 2,
            "decoder_head_dim": 16,
            "decoder_num_heads": 1,
        },
        "inference": {"FINGERPRINT_FEATURE": False, "SOFTMAX_TEMPERATURE": 1.0},
        "schedule": {"steps": 6, "cells": 4000},
        "phases": [{"until": 1.0, "rows": [40, 60], "columns": [1, 4], "max_classes": 3}],
    }


@pytest.fixture
def values():
    return tiny_values()


@pytest.fixture
def config(values):
    return parse_config(values)
