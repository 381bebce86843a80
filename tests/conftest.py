"""Every test runs on the CPU, with warnings as errors and without silent promotion of ranks or types.

Most of the tests' time would go to compiling. So XLA optimises little, unless a test asks for the fixture `optimised`,
and compiled programs are kept in one folder for all tests, the processes that they start, and reruns.
"""

import functools
import gc
import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
# The old way of compiling loops, all in one piece: other versions may not know these flags, and XLA ends the process.
FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def add(variable, value, separator):
    """Puts `value` in front in an environment variable, which this process may have from another that did it."""
    old = os.environ.get(variable, "")
    if value not in old:
        os.environ[variable] = separator.join(filter(None, (value, old)))


os.environ["JAX_PLATFORMS"] = "cpu"
if "MOM_TESTS_OPTIMISED" not in os.environ:  # see programs.optimised
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        add("XLA_FLAGS", FLAGS, " ")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(FOLDER.parent / ".pytest_cache" / "xla")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
# Python runs the file sitecustomize.py there when it starts, that is in other processes.
add("PYTHONPATH", str(FOLDER / "startup"), os.pathsep)

# Tracing makes many objects, few of which are garbage, and notes for each operation which lines of Python it came from.
gc.set_threshold(100_000, 20, 100)
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import jax  # noqa: E402  it reads those when it is imported
import pytest  # noqa: E402
from jax._src import lru_cache  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def write_whole_entries():
    """What sitecustomize.py does, for this process, where it has not been done."""
    if lru_cache.LRUCache.put.__name__ == "put":
        spec = importlib.util.spec_from_file_location("startup", FOLDER / "startup" / "sitecustomize.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.write_whole_entries(lru_cache.LRUCache)


write_whole_entries()

# The files that take longest, in that order: they come first, so that no worker has one left at the end.
SLOW_FILES = """
test_processes test_sharding test_exchange test_programs test_gpu_compiled test_training test_model_oracle test_plan
test_exchange_tpu test_prepare test_convert_sizes test_dispatch test_segments test_official_parity
test_official_backends test_benchmarks test_benchmarks_gpu test_tpu_flops test_model test_reference test_convert
test_attention test_generate_cache test_model_random test_generate test_phases test_vanilla_golden test_evaluation
test_harness test_xsum test_glue
""".split()  # noqa: SIM905


def pytest_configure(config):
    config.option.loadscopereorder = False  # of xdist: the files that have most tests first


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: SLOW_FILES.index(item.path.stem) if item.path.stem in SLOW_FILES else len(SLOW_FILES))


@pytest.fixture(scope="module", autouse=True)
def _compiled(request):
    """What a file's tests have compiled is freed after it: a process would grow to gigabytes.

    The folder of compiled programs serves those that run the same training; elsewhere hardly a program is compiled
    twice, and to write one takes a tenth of the time to compile it.
    """
    jax.config.update("jax_enable_compilation_cache", "train" in request.path.parts)
    compilation_cache.reset_cache()
    from train.steps.memory import return_freed_memory

    yield
    if "devices" in sys.modules:
        sys.modules["devices"].end()
    jax.clear_caches()
    gc.collect()
    return_freed_memory()


@pytest.fixture
def optimised():
    """XLA optimises as in users' programs: where that is what is tested, or where rounding otherwise adds up."""
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


@pytest.fixture(scope="module")
def shared_steps():
    """Runs in this process share the train steps of equal phases: to trace one anew takes most of a tiny run's time.

    So a run that goes on from a checkpoint must not make a step compile again. Their samples are short, and their
    reports have no pictures, which take longer to draw than a tiny run to train; test_report.py draws them.
    """
    from train.reporting import pictures
    from train.training import ending, loop

    with pytest.MonkeyPatch.context() as patch:
        for name in ("make_optimizer", "jit_train_step"):
            patch.setattr(loop, name, functools.cache(getattr(loop, name)))
        patch.setattr(ending, "SAMPLE_TOKENS", 4)
        patch.setattr(pictures, "embedded", lambda width, height, draw, caption: f"<p>{caption}</p>")
        yield


@pytest.fixture
def internet(tmp_path, monkeypatch):
    """A table of what each URL has; TFDS's downloads come from there. The rest of TFDS is as it is."""
    import tensorflow_datasets as tfds
    from downloads import from_table

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    content: dict[str, bytes] = {}
    monkeypatch.setattr(tfds.download.DownloadManager, "download", from_table(content))
    return content
