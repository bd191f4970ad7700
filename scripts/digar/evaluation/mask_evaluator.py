"""An evaluator whose predictions are the masks that the folder inference writes."""

from collections.abc import Mapping, Sequence
from typing import Any

from ignite.engine import Engine
from monai.engines import IterationEvents, SupervisedEvaluator
from monai.utils.enums import CommonKeys as Keys
from torch.nn.parallel import DistributedDataParallel


class MaskEvaluator(SupervisedEvaluator):
    """MONAI's evaluator over whole cases: the inferer's slabs go straight into the postprocessing, which inverts them.

    The loader must give lists of cases (``collate_fn`` is ``list``), the inferer be a
    :class:`digar.inference.windows.WindowInferer`, and the postprocessing begin with a
    :class:`digar.inference.inverting.InvertToMaskd`. Images and labels stay where they are; windows are moved to the
    device. After it each case holds ``image`` in the working grid, ``label`` and ``pred`` in the image's own.

    Args:
        options: those of ``SupervisedEvaluator``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, decollate=False)

    def _iteration(self, engine: Engine, batchdata: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        # several threads call the network at once, each as often as its windows ask: nothing for DDP to synchronise
        wrapped = isinstance(self.network, DistributedDataParallel)
        network = self.network.module if wrapped else self.network
        with engine.mode(network):
            engine.state.output = [
                {
                    Keys.IMAGE: case[Keys.IMAGE],
                    Keys.LABEL: case[Keys.LABEL],
                    Keys.PRED: self.inferer.slabs(case[Keys.IMAGE], network, self.state.device),
                }
                for case in batchdata
            ]
            engine.fire_event(IterationEvents.FORWARD_COMPLETED)
            engine.fire_event(IterationEvents.MODEL_COMPLETED)  # the postprocessing, which takes the slabs
        return engine.state.output
