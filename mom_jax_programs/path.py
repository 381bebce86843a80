"""`mom path`: the folder of the packages train and configs, for PYTHONPATH, MYPYPATH and an editor's settings."""

from collections.abc import Sequence

from mom_jax_programs import home


def main(arguments: Sequence[str] | None = None) -> int:
    from train.cli import Parser
    from train.flags.completion import complete

    parser = Parser("mom path", description=__doc__)
    complete(lambda: parser)
    parser.parse_args(arguments)
    print(home())
    return 0
