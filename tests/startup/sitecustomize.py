"""Run by Python as it starts, in every process of the tests: JAX's cache of compiled programs gets whole files only.

JAX writes an entry of its cache in place. Another process could read half of one, and one that is killed meanwhile
leaves half of one for good, since an entry that is there is not written again. Here an entry is written into a folder
of its own and then moved, so that all tests, and the programs that they start and kill, can share one cache.
"""

import os
import sys
import tempfile
from importlib.machinery import PathFinder

MODULE = "jax._src.lru_cache"


def write_whole_entries(cache):
    """Changes JAX's class, whose put(key, value) makes files in the folder `self.path`."""
    put = cache.put

    def put_whole(self, key, value):
        with tempfile.TemporaryDirectory(dir=str(self.path), prefix="unfinished-") as folder:
            put(cache(folder, max_size=-1), key, value)
            for name in os.listdir(folder):
                os.replace(os.path.join(folder, name), os.path.join(str(self.path), name))

    cache.put = put_whole


class Finder:
    """Finds that module only, and changes it once it has been run: not every process imports JAX."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        spec = PathFinder.find_spec(name, path) if name == MODULE else None
        if spec is not None:
            run = spec.loader.exec_module

            def run_and_change(module):
                run(module)
                write_whole_entries(module.LRUCache)

            spec.loader.exec_module = run_and_change
        return spec


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, Finder)
