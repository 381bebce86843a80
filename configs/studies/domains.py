"""Other texts than the quickstart's: code, English, French and German.

Of each as many bytes, with a tokenizer of its own of 2048 pieces and a vanilla model that the other one is compared
with. In one phase, where most separates the two (configs/studies/one_phase.py). On the English text some seeds of the
MoM lose their way in the first hundred steps, so that there both are trained with a longer warm-up, too.

Commands: python -m configs.studies.texts.domains
          python -m train.study configs/studies/domains.py
"""

from configs.studies.setting import LONG_WARM_UP, OURS_AT_ONCE, VANILLA_AT_ONCE, sizes
from configs.studies.texts.domains import COMMAND, DOMAINS, file_of
from train.study import Arm, Study, changed

_WARM = "vanilla, english, long warm-up"


def get_study() -> Study:
    recipes = {"vanilla": VANILLA_AT_ONCE.config, "ours": OURS_AT_ONCE.config}
    texts = {"data.validation_fraction": 0.1, "data.vocab_size": 2048, "final_batches": 40}
    return Study(
        name="domains",
        question="Does it depend on the kind of text whether a MoM is better than the vanilla transformer?",
        base={"small": changed(sizes(steps=200)["small"], texts)},
        seeds=(0, 1, 2),
        arms=(
            *(
                Arm(f"{name}, {domain}", (_of(domain), recipe), baseline=f"vanilla, {domain}")
                for domain in DOMAINS
                for name, recipe in recipes.items()
            ),
            *(
                Arm(f"{name}, english, long warm-up", (_of("english"), recipe, LONG_WARM_UP), baseline=_WARM)
                for name, recipe in recipes.items()
            ),
        ),
        needs={file_of(domain): f"run: {COMMAND}" for domain in DOMAINS},
    )


def _of(domain: str) -> dict[str, str]:
    return {"data.source": f"text:{file_of(domain)}"}
