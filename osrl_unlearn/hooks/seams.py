"""The upstream functions that this package wraps, and the parameters that it counts on."""
from typing import NamedTuple, Tuple


class Seam(NamedTuple):
    """``target`` is "module:qualified.name"; ``parameters`` are its first parameters, in order."""

    target: str
    parameters: Tuple[str, ...]


_TRAINER = ("self", "model", "env", "logger")

SEAMS = (
    Seam("dsrl.offline_env:OfflineEnv.get_dataset", ("self", "h5path")),
    Seam("dsrl.offline_env:OfflineEnv.pre_process_data",
         ("self", "data_dict", "outliers_percent", "noise_scale", "inpaint_ranges", "epsilon", "density")),
    Seam("osrl.common.dataset:TransitionDataset.__init__",
         ("self", "dataset", "reward_scale", "cost_scale", "state_init")),
    Seam("osrl.common.dataset:SequenceDataset.__init__", ("self", "dataset")),
    Seam("osrl.algorithms.cpq:CPQTrainer.__init__", _TRAINER),
    Seam("osrl.algorithms.cpq:CPQTrainer.train_one_step", ("self",)),
    Seam("osrl.algorithms.bcql:BCQLTrainer.__init__", _TRAINER),
    Seam("osrl.algorithms.bcql:BCQLTrainer.train_one_step", ("self",)),
    Seam("osrl.algorithms.bc:BCTrainer.__init__", _TRAINER),
    Seam("osrl.algorithms.bc:BCTrainer.train_one_step", ("self",)),
    Seam("osrl.algorithms.bearl:BEARLTrainer.__init__", _TRAINER),
    Seam("osrl.algorithms.bearl:BEARLTrainer.train_one_step", ("self",)),
    Seam("osrl.algorithms.cdt:CDTTrainer.__init__", _TRAINER),
    Seam("osrl.algorithms.cdt:CDTTrainer.train_one_step", ("self",)),
    Seam("osrl.algorithms.coptidice:COptiDICETrainer.__init__", _TRAINER),
    Seam("osrl.algorithms.coptidice:COptiDICETrainer.train_one_step", ("self",)),
    Seam("osrl.algorithms.cpq:CPQ.setup_optimizers", ("self",)),
    Seam("osrl.algorithms.bcql:BCQL.setup_optimizers", ("self",)),
    Seam("osrl.algorithms.bc:BC.setup_optimizers", ("self",)),
    Seam("osrl.algorithms.bearl:BEARL.setup_optimizers", ("self",)),
    Seam("osrl.algorithms.coptidice:COptiDICE.setup_optimizers", ("self",)),
    Seam("osrl.algorithms.cdt:CDT.forward", ("self", "states", "actions", "returns_to_go", "costs_to_go")),
    Seam("fsrl.utils.logger.base_logger:BaseLogger.__init__", ("self", "log_dir", "log_txt", "name")),
    Seam("fsrl.utils.logger.base_logger:BaseLogger.store", ("self", "tab")),
    Seam("fsrl.utils.logger.base_logger:BaseLogger.save_checkpoint", ("self", "suffix")),
    Seam("torch:Tensor.backward", ("self",)),
)

TRAINERS = sorted({seam.target.partition(":")[2].split(".")[0] for seam in SEAMS if "Trainer" in seam.target})
