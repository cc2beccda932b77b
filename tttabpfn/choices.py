"""What parameters that take a name may be, and what each name means; messages and help texts are made from it."""

ADAPTATIONS = {
    "gradient": "gradient steps on TabPFN's own weights",
    "memory": "small models of TabPFN's row embeddings and of the table's columns, mixed with its prediction",
    "both": "the memory, then gradient steps where they add to it",
}

SELECTIONS = {
    "in_context": "the stage that compares rows",
    "all": "every weight, at several times the cost",
    "mlp": "the feed-forward matrices",
    "attention": "the attention projections",
    "last_quarter": "the last quarter of the blocks",
}
"""Named parts of a network that may adapt (`fast_weights`)."""

MAX_STEP_SIZE = 1e4
"""Far above any step that trains under any rule; larger ones end in weights without meaning."""
