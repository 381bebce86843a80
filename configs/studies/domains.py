"""Other texts than the quickstart's: code, English, French and German.

Of each as many bytes, with a tokenizer of its own of 2048 pieces and a vanilla model that the others are compared with.

Commands: python -m configs.studies.texts.domains
          python -m train.study configs/studies/domains.py
"""

from configs.studies.setting import VANILLA, ours, paper, sizes
from configs.studies.texts.domains import COMMAND, DOMAINS, file_of
from train.study import Arm, Study, changed


def get_study() -> Study:
    recipes = {"vanilla": VANILLA.config, "paper": paper(), "ours": ours()}
    small = changed(sizes()["small"], {"data.validation_fraction": 0.1, "data.vocab_size": 2048, "final_batches": 40})
    return Study(
        name="domains",
        question="Does it depend on the kind of text whether a MoM is better than the vanilla transformer?",
        base={"small": small},
        seeds=(0, 1),
        arms=tuple(
            Arm(f"{name}, {domain}", (_of(domain), recipe), baseline=f"vanilla, {domain}")
            for domain in DOMAINS
            for name, recipe in recipes.items()
        ),
        needs={file_of(domain): f"run: {COMMAND}" for domain in DOMAINS},
    )


def _of(domain: str) -> dict[str, str]:
    return {"data.source": f"text:{file_of(domain)}"}
