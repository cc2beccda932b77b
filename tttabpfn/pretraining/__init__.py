"""Pretraining of a base checkpoint on synthetic tables: ``python -m tttabpfn.pretraining``."""
