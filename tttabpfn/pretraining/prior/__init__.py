"""The synthetic tables the base checkpoint is trained on."""

from tttabpfn.pretraining.prior.batches import Batch, BatchStream, Shape, sample_batch, sample_shape
from tttabpfn.pretraining.prior.tasks import sample_task

__all__ = ["Batch", "BatchStream", "Shape", "sample_batch", "sample_shape", "sample_task"]
