# Trainings: datasets x trainers x folds x seeds, each in a job; a job that is repeated goes on (--c).
#
#   snakemake --snakefile train.smk --configfile train.yaml --cores 1 --keep-going
#
# The configuration, train.yaml; the datasets are planned and preprocessed:
#   results: /data/results          # in it, seed-<n> is nnUNet_results of one seed
#   datasets: [Dataset101_Cord]
#   trainers: [nnUNetTrainerSoftSeg, nnUNetTrainer]
#   plans: nnUNetSoftSegPlans
#   configuration: 3d_fullres
#   folds: [0, 1, 2, 3, 4]
#   seeds: [0, 1, 2]                # trainers of nnU-Net's own have none: their trainings differ by chance
#   device: cuda

import os
import subprocess
import sys
from pathlib import Path

RESULTS = Path(config["results"])
MODEL = "seed-{seed}/{dataset}/{trainer}__" + f"{config['plans']}__{config['configuration']}" + "/fold_{fold}"
# nnU-Net writes it when the validation after the training is done.
LAST = str(RESULTS / MODEL / "validation" / "summary.json")


rule all:
    input:
        expand(
            LAST,
            dataset=config["datasets"],
            trainer=config["trainers"],
            fold=config["folds"],
            seed=config["seeds"],
        ),


rule train:
    output:
        LAST,
    wildcard_constraints:
        seed="[0-9]+",
        fold="[0-9]+|all",
        trainer="[^/]+",
        dataset="Dataset[0-9]+_[^/]+",
    threads: config.get("threads", 8)
    retries: config.get("retries", 3)
    resources:
        mem_mb=config.get("mem_mb", 32000),
        runtime=config.get("minutes", 1440),
    run:
        results = RESULTS / f"seed-{wildcards.seed}"
        folder = Path(output[0]).parents[1]
        words = [wildcards.dataset, config["configuration"], wildcards.fold, "-tr", wildcards.trainer]
        words += ["-p", config["plans"], "-device", config.get("device", "cuda")]
        # What an earlier attempt has kept: the training goes on there.
        words += ["--c"] if any(folder.glob("checkpoint_*.pth")) else []
        subprocess.run(
            [sys.executable, "-m", "nnunet_softseg", "run", "nnUNetv2_train", *words],
            env={**os.environ, "nnUNet_results": str(results), "NNUNET_SOFTSEG_SEED": wildcards.seed},
            check=True,
        )
