"""Two processes on the CPU train one network, as nnU-Net's `-num_gpus 2` does on two GPUs."""

import json
import multiprocessing.dummy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_dataset import TinyDataset, make_ready_to_train, make_tiny_dataset, small_plans
from torch import distributed

STEPS = 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyDataset]:
    patch = pytest.MonkeyPatch()
    tiny = make_tiny_dataset(
        tmp_path_factory.mktemp("distributed"), shape=(26, 30, 44), reader="NibabelIOWithReorient"
    )
    make_ready_to_train(tiny, patch)
    yield tiny
    patch.undo()


def train(rank: int, root: str, plans: dict[str, Any], dataset_json: dict[str, Any]) -> None:
    """What `nnunetv2.run.run_training.run_ddp` does in one process, with gloo in place of NCCL."""
    from nnunetv2.evaluation import evaluate_predictions
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module  # noqa: N813  a module, no class

    from nnunet_softseg.training.trainer import nnUNetTrainerSoftSeg

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=2)
    on_devices, cpu = module.DDP, torch.device("cpu")
    module.DDP = lambda network, device_ids: on_devices(network)  # modules on a CPU have no device ids
    for each in (module, evaluate_predictions):
        each.multiprocessing = SimpleNamespace(get_context=lambda _: multiprocessing.dummy)
    trainer = nnUNetTrainerSoftSeg(plans, "3d_fullres", "all", dataset_json, cpu)
    trainer.device, trainer.grad_scaler = cpu, None  # nnU-Net takes GPUs for granted
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, STEPS, 1
    keys: list[str] = []
    step = trainer.train_step

    def noted(batch: dict[str, Any]) -> dict[str, Any]:
        keys.extend(batch["keys"])
        assert len(batch["data"]) == 1
        return step(batch)

    trainer.train_step = noted
    trainer.run_training()
    trainer.perform_actual_validation()
    log = trainer.logger.local_logger.my_fantastic_logging
    result = {
        "weights": trainer.network.module.state_dict(),
        "keys": keys,
        "log": {name: log[name] for name in ("train_losses", "val_losses", "soft_dice")},
    }
    torch.save(result, f"{root}/rank{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.soak
def test_two_processes_learn_one_network_from_different_patches(dataset: TinyDataset, tmp_path: Path) -> None:
    plans = small_plans(dataset)
    torch.multiprocessing.spawn(train, (str(tmp_path), plans, dataset.dataset_json), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in (0, 1))
    for name, values in first["weights"].items():
        if name != "decoder.seg_layers.reference_plateau":  # that of rank 0, at the next step
            assert torch.equal(values, second["weights"][name]), name
    assert len(first["keys"]) == len(second["keys"]) == STEPS
    assert str(first["log"]) == str(second["log"])  # gathered from both
    model = dataset.root / "results" / dataset.name / "nnUNetTrainerSoftSeg__nnUNetPlans__3d_fullres"
    checkpoint = torch.load(model / "fold_all" / "checkpoint_final.pth", weights_only=False)
    for name, values in checkpoint["network_weights"].items():
        assert torch.equal(values, first["weights"][name]), name
    validation = model / "fold_all" / "validation"
    cases = json.loads((validation / "summary_soft.json").read_text())["cases"]
    assert set(cases) == set(dataset.cases)  # each case by one of the two
