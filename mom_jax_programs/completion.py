"""`mom completion SHELL`: a script with which the shell completes the command, its flags and their values.

bash   mom completion bash > ~/.local/share/bash-completion/completions/mom
zsh    mom completion zsh > ~/.mom_completion.zsh, and in ~/.zshrc: source ~/.mom_completion.zsh
fish   mom completion fish > ~/.config/fish/completions/mom.fish
"""

import argparse
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    from argcomplete import shellcode

    from train.cli import Parser
    from train.flags.completion import complete

    as_it_is = argparse.RawDescriptionHelpFormatter
    parser = Parser("mom completion", description=__doc__, formatter_class=as_it_is)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    complete(lambda: parser)
    flags = parser.parse_args(arguments)
    print(shellcode(["mom"], shell=flags.shell))
    return 0
