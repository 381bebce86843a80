"""`python -m mom_jax_programs` is the command `mom` where no script of that name is on the path."""

from mom_jax_programs.command import main

if __name__ == "__main__":
    main()
