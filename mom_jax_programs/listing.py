"""`mom list`: the configurations and studies that come with mom_jax. `mom list NAME` prints one, to change a copy."""

import dataclasses
import json
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    from train.cli import Parser
    from train.flags.completion import complete, complete_names
    from train.flags.experiments import experiments, find_experiment

    parser = Parser("mom list", description=__doc__)
    complete_names(parser.add_argument("name", nargs="?", metavar="NAME", help="print the file of this one"))
    parser.add_argument("--json", action="store_true", help="print a JSON list of name, function, title and file")
    complete(lambda: parser)
    flags = parser.parse_args(arguments)
    if flags.name is not None:
        function = "get_study" if flags.name.startswith("studies/") else "get_config"
        print(find_experiment(flags.name, function, "name").read_text("utf-8"), end="")
        return 0
    known = experiments()
    if flags.json:
        print(json.dumps([dataclasses.asdict(e) | {"file": str(e.file)} for e in known]))
        return 0
    width = max(len(e.name) for e in known) + 2
    for experiment in known:
        print(f"{experiment.name:<{width}}{experiment.title}")
    return 0
