"""The main table at 36 M parameters, for ten minutes of one H100 or H200 and one file of tokens.

Commands: python -m train.study.packed configs/studies/main_gpu.py --pack tokens.bin
          python -m train.study.packed configs/studies/main_gpu.py --tokens tokens.bin --out FOLDER --seconds 540

The first needs the project's packages, no accelerator, and some minutes; the second a card, jax, flax, optax, chex and
numpy. The arms are those of configs/studies/setting, the most important first. Text: the sources of the Python
packages that are installed in .venv, from j to s in the alphabet.
"""

from configs.studies.setting import OURS, OURS_DEEP, VANILLA, deep, modules, paper, sizes, wide
from mom_jax.config import RouterConfig
from train.config import Config, OptimConfig
from train.study import Arm, Study, changed


def gpu() -> Config:
    """An anchor, eight layers that become modules, an anchor; 16,384 tokens a step. The steps are a proportion: with
    `--seconds` as many are trained as fit."""
    return changed(
        sizes()["small"],
        {
            "model.context_length": 512,
            "model.d_model": 512,
            "model.num_heads": 8,
            **modules(8),
            "model.router": RouterConfig(dim=128, temperature=1.0),
            "model.dtype": "bfloat16",
            "model.remat": "none",
            "data.source": "text:.venv/lib/python3*/site-packages/[j-s]*/**/*.py",
            "data.vocab_size": 8192,
            "data.batch_size": 32,
            "data.length": 512,
            "data.validation_fraction": 0.05,
            "data.validation_batches": 16,
            "final_batches": 64,
            "phases.pretrain.steps": 1500,
            "phases.pretrain.optim": OptimConfig(learning_rate=1e-3, warmup_steps=100),
            "phases.mom.steps": 1000,
            "phases.mom.optim": OptimConfig(learning_rate=1e-3, warmup_steps=50, router_multiplier=3.0),
        },
    )


def get_study() -> Study:
    return Study(
        name="main_gpu",
        question="Is a MoM of 36 M parameters better than the vanilla transformer that it starts from?",
        base={"gpu": gpu()},
        arms=(
            VANILLA,
            OURS,
            OURS_DEEP,
            Arm("paper, K=1", paper(top_k=1)),
            Arm("paper, K=2", paper(top_k=2)),
            Arm("paper, deep", (paper(), deep)),
            Arm("paper, wide", (paper(top_k=3), wide)),
        ),
    )
