"""Looks inside checkpoints: `python -m train.analyse --checkpoint RUN [--data.source text:GLOB] [--out FOLDER]`.

What the routers of a Mixture-of-Modules do on a text: which modules tokens pass through and how deep they go, whether
modules differ, and whether the choices depend on the step, on the token or on its context (docs/analysis.md). Of a
vanilla model the similarity of its layers. The text is what a run holds out, or with --data.source the documents of a
source, read as a stream until --tokens tokens are captured.

Several checkpoints stand side by side: --checkpoint A B. Figures go to FOLDER/analysis.json, tables to analysis.md,
pictures to analysis_modules.png and analysis_routing.png, and, with --prune-curve, to analysis_pruning.png; FOLDER is,
for one run, the folder `analysis` in the run's, and in the working folder for all else.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro

from mom_jax.config import MeshConfig
from train.cli import import_modules, run_program
from train.parse import Imports, parse_flags


@dataclasses.dataclass(frozen=True)
class Data:
    """The text to analyse on.

    Attributes:
        source: `text:GLOB`, `tfds:NAME/CONFIG`, `builtin:stdlib` or a mixture; without one a run's held-out data.
    """

    source: str | None = None


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Look inside checkpoints.

    Attributes:
        checkpoint: a run's folder, RUN/checkpoints/PHASE, RUN/checkpoints/PHASE/STEP, a folder of Hugging Face's GPT-2
            or of the authors' code, or a .safetensors file of ours; or several of these.
        output: the folder for figures, tables and pictures.
        imports: modules or Python files to import first, such as one that registers the model's router.
        best: of a run's phase take the step with the lowest validation loss, not the latest.
        tokenizer: a tokenizer's file or folder, where none lies beside the checkpoint.
        tokens: how many tokens of the text are captured, at most.
        length: tokens of a sequence; 0 is as many as the run trained with, of other formats the model's context.
        batch_size: sequences that are computed together.
        json: print one JSON object (a list of them for several checkpoints) instead of tables.
        prune_curve: also measure the loss against the modules that are cut, on each side and on both, by each ranking.
        mesh: the devices to run on; by default all, each with a copy of the model.
    """

    checkpoint: tuple[str, ...]
    output: Annotated[str | None, tyro.conf.arg(aliases=("--out",))] = None
    imports: Imports = ()
    best: bool = False
    tokenizer: str | None = None
    tokens: int = 16384
    length: int = 0
    batch_size: int = 8
    json: bool = False
    prune_curve: bool = False
    data: Data = dataclasses.field(default_factory=Data)
    mesh: MeshConfig = MeshConfig()


def main(arguments: Sequence[str] | None = None) -> int:
    flags = parse_flags(Arguments, arguments, prog="python -m train.analyse", description=__doc__)
    import_modules(flags.imports)

    from mom_jax.fields import require
    from mom_jax.sharding import make_mesh
    from train.analysis.opened import TextFlags
    from train.analysis.program import analyse, write_pictures
    from train.analysis.tables import tables
    from train.tasks.output import Results, output_folder
    from train.tasks.results import check_output

    require(len(flags.checkpoint) >= 1, "checkpoint", flags.checkpoint, "must name at least one")
    text = TextFlags(flags.data.source, flags.tokenizer, flags.tokens, flags.length, flags.batch_size)
    output = output_folder(flags.output, flags.checkpoint, "analysis", best=flags.best)
    check_output(output)
    mesh = make_mesh(flags.mesh)
    found = analyse(flags.checkpoint, text, best=flags.best, mesh=mesh, curves=flags.prune_curve)
    write_pictures(found, output)
    table = tables(found)
    Results("analysis", [own.record for own in found], table, table).finish(output, as_json=flags.json)
    return 0


if __name__ == "__main__":
    run_program(main)
