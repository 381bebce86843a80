"""Converts models between formats: `python -m train.convert --input FOLDER --output FOLDER --to vanilla`.

Reads a run's folder (or one of its checkpoints), a folder of Hugging Face's GPT-2 or of the authors' code (config.json
with model.safetensors or pytorch_model.bin), or a single .safetensors file of ours, and writes

vanilla      a run with a GPT-2's parameters: `init_from` of a phase, or a model to evaluate and generate with
mom          a run with the start of phase 2: the Mixture-of-Modules of --config, made of a vanilla model's layers
huggingface  a folder that `transformers` loads; only for vanilla models
official     a folder for the authors' code
safetensors  a single file: --output FILE.safetensors

With --prune attn=0.5,ffn=0.25 instead of --to it writes a smaller run, without such shares of the modules: those that
matter least by --rank, on the run's held-out data or on --data.source.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mom_jax.config import MeshConfig
from train.cli import import_modules, load_config, notify, run_program
from train.parse import Imports, parse_flags


@dataclasses.dataclass(frozen=True)
class Data:
    """Text to rank modules on.

    Attributes:
        source: `text:GLOB`, `tfds:NAME/CONFIG`, `builtin:stdlib` or a mixture; without one a run's held-out data.
        tokens: how many are read.
    """

    source: str | None = None
    tokens: int = 65536


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of the program.

    Attributes:
        input: what is read.
        output: what is written; must not be there yet.
        to: the format to write.
        prune: instead of `to`: the shares of the modules to cut, of each side. A share of which no whole number of
            modules comes cuts as many as go into it.
        rank: which modules are cut first. `loss`: those without which the loss rises least; `usage`: those that are
            chosen least; `similarity`: those whose outputs are the most like those of others.
        data: the text that modules are ranked on.
        mesh: the devices that rank them.
        tokenizer: a tokenizer's file or folder, where none lies beside the input.
        config: for `mom`, a Python file with get_config(), whose `model` is made.
        imports: modules or Python files to import first, such as one that registers the model's router.
        best: of a run's phase take the step with the lowest validation loss, not the latest.
    """

    input: str
    output: str
    to: Literal["vanilla", "mom", "huggingface", "official", "safetensors"] | None = None
    prune: str | None = None
    rank: Literal["usage", "loss", "similarity"] = "loss"
    data: Data = dataclasses.field(default_factory=Data)
    mesh: MeshConfig = MeshConfig(data=1)
    tokenizer: str | None = None
    config: str | None = None
    imports: Imports = ()
    best: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    flags = parse_flags(Arguments, arguments, prog="python -m train.convert", description=__doc__)
    import_modules(flags.imports)

    from mom_jax.fields import ConfigError, require
    from mom_jax.interop.phases import from_vanilla, is_vanilla
    from train.checkpoints import formats, single_file
    from train.checkpoints.models import open_model, write_run
    from train.data import tokenizers
    from train.files import check_new, writing
    from train.steps.state import abstract_params
    from train.training.initial_state import completed

    both = flags.to is not None and flags.prune is not None
    require((flags.to or flags.prune) is not None and not both, "to", flags.to, "give either --to or --prune")
    require(
        (flags.config is not None) == (flags.to == "mom"), "config", flags.config, "goes with --to mom, and only so"
    )
    output = Path(flags.output).expanduser()
    check_new(output)
    if flags.prune is not None:
        return _prune(flags, flags.prune, output)
    for name in ("rank", "data", "mesh"):
        require(not _given(flags, name), name, getattr(flags, name), "goes with --prune only")
    if flags.to == "safetensors":
        require(output.suffix == ".safetensors", "output", flags.output, "must end with .safetensors")
    target = None if flags.config is None else load_config(flags.config)
    model = open_model(flags.input, field="input", best=flags.best)
    notify(f"{flags.input}: {model.description}")
    tokenizer = model.tokenizer if flags.tokenizer is None else tokenizers.load(flags.tokenizer, field="tokenizer")
    if tokenizer is not None:
        vocabulary, ids = model.config.vocab_size, tokenizer.vocab_size
        require(
            ids <= vocabulary, "tokenizer", flags.tokenizer or "beside the input", f"has more than {vocabulary} ids"
        )
        known = model.fingerprint in ("", tokenizer.fingerprint)
        require(known, "tokenizer", flags.tokenizer or "beside the input", "is not the one the model was trained with")
    config, params = model.config, model.params

    if flags.to == "vanilla" or flags.to == "mom":
        if tokenizer is None:
            raise ConfigError(f"input={flags.input!r}: has no tokenizer; give one with --tokenizer")
        if not is_vanilla(config):
            raise ConfigError(f"input={flags.input!r}: is a Mixture-of-Modules; --to {flags.to} takes a vanilla model")
        if target is not None:
            mom = target.with_vocabulary(config.vocab_size).model
            params, dropped = from_vanilla(config, params, mom, abstract_params(mom))
            config, params = mom, completed(params, mom, target.seed)
            for message in dropped:
                notify(message)
        write_run(output, flags.to, config, params, tokenizer)
    elif flags.to == "safetensors":
        fingerprint = model.fingerprint if tokenizer is None else tokenizer.fingerprint
        with writing(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            single_file.save(output, config, params, fingerprint)
    elif flags.to is not None:
        formats.write_folder(output, flags.to, config, params, tokenizer)
    print(f"{flags.output}: {_count(params):,} parameters")
    return 0


def _given(flags: Arguments, name: str) -> bool:
    """Whether a flag has another value than its default."""
    return getattr(flags, name) != getattr(Arguments("", ""), name)


def _prune(flags: Arguments, text: str, output: Path) -> int:
    """Writes the smaller run."""
    from mom_jax.sharding import make_mesh
    from train.analysis.opened import TextFlags
    from train.analysis.prune_run import prune_checkpoint
    from train.checkpoints.models import write_run

    source = TextFlags(flags.data.source, flags.tokenizer, flags.data.tokens)
    small = prune_checkpoint(flags.input, text, flags.rank, source, best=flags.best, mesh=make_mesh(flags.mesh))
    for message in small.messages:
        notify(message)
    write_run(output, "pruned", small.config, small.params, small.tokenizer, small.origin)
    print(f"{flags.output}: {_count(small.params):,} parameters, of {small.before:,}")
    return 0


def _count(params: Any) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(params))


if __name__ == "__main__":
    run_program(main)
