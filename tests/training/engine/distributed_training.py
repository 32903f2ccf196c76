"""Started by test_processes.py, once or as several processes: trains a stand-in network and saves its weights."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from training.engine import distributed as processes
from training.engine.build import get_training_config
from training.engine.trainer import Trainer

SETTINGS = {
    "DATASETS.TRAIN": ["scenes:train:8"],
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TRAIN": (72,),
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.MAX_ITER": 3,
    "SOLVER.BASE_LR": 0.01,
    "TRAINING.OPTIMIZER": "SGD",
    "TRAINING.SCENE_WIDTH": 96,
    "TRAINING.SCENE_HEIGHT": 72,
    "TRAINING.MAX_MINUTES": 0.0,
    "TRAINING.LOG_PERIOD": 1,
}


class MeanSquare(nn.Module):
    """A loss that is a mean over images, as a detector's is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        return {
            "loss": torch.stack([self.layer(record["image"][None] / 255.0).square().mean() for record in batch]).mean()
        }


def main(folder: Path) -> None:
    cfg = get_training_config("training/scenes-small")
    cfg.merge_from_list([part for pair in SETTINGS.items() for part in pair])
    processes.init_process_group()
    torch.manual_seed(processes.rank())  # different starts: the first process's must win
    network = MeanSquare()
    Trainer(cfg, network, folder).train()
    torch.save(network.state_dict(), folder / f"weights_{processes.rank()}.pt")
    processes.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
