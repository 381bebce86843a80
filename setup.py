"""What a wheel has: `mom_jax`, `mom_jax_programs`, and within that folder `train` and `configs` (docs/install.md).

All else stands in pyproject.toml.
"""

from setuptools import find_packages, setup

WITHIN = ("train", "configs")  # as they are: no line of them is changed

setup(
    packages=[
        *find_packages(include=["mom_jax", "mom_jax.*", "mom_jax_programs"]),
        *(f"mom_jax_programs.{name}" for name in find_packages(include=[*WITHIN, *(f"{name}.*" for name in WITHIN)])),
    ],
    package_dir={f"mom_jax_programs.{name}": name for name in WITHIN},
)
