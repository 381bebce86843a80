"""The model equals the authors' code: every golden in MOM_GOLDENS, tests/goldens by default.

Compared in float32: logits, losses, router scores and states, chosen classes, the hidden state after every step, and
the gradient of the total loss with respect to every parameter.
"""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import close, run

from mom_jax.interop.official import params_from_official, params_to_official

pytestmark = pytest.mark.parity


# Compiling takes seconds a golden: these are compared always, the others by `make test-slow`.
QUICK = ("02_gru_softmax", "14_vanilla", "22_ste_clamp")
FILES = [
    pytest.param(path, marks=() if path.stem.startswith(QUICK) else pytest.mark.slow, id=path.stem)
    for path in golden.golden_files()
]


@pytest.fixture(scope="module", params=FILES)
def case(request):
    loaded = golden.load(request.param)
    params = jax.tree.map(jnp.asarray, params_from_official(loaded.state_dict, loaded.config))
    step = jax.jit(jax.grad(lambda p: run(p, loaded), has_aux=True), compiler_options=golden.compiler_options(loaded))
    gradient, (result, output, logits) = step(params)
    return loaded, gradient, result, output, logits


def test_logits_and_losses(case):
    loaded, _, result, _, logits = case
    close(loaded, "logits", logits)
    close(loaded, "loss", result.loss)
    if loaded.config.num_classes is None:
        close(loaded, "total_loss", result.total)
        if "aux_loss" in loaded.arrays:
            close(loaded, "aux_loss", result.balance)
        else:
            assert float(result.balance) == 0


def test_routing(case):
    loaded, _, _, output, _ = case
    config, compared = loaded.config, 0
    for ours, theirs in {"scores": "scores", "index": "topk_ids", "state": "gru_state"}.items():
        # With all modules taken the stored ids are the best K, which play no part.
        if ours == "index" and config.router.all_modules:
            continue
        for side, short in (("attention", "attn"), ("ffn", "ffn")):
            i = 0
            while (name := f"{short}_{theirs}/{i}") in loaded.arrays:
                have = np.asarray(output.captured[f"{side}/{ours}"][divmod(i, config.num_steps)])
                if ours == "index":
                    np.testing.assert_array_equal(have, loaded.arrays[name], err_msg=name)
                else:
                    close(loaded, name, have)
                compared, i = compared + 1, i + 1
    routed = config.num_chunks and "routed" in (config.kind("attention"), config.kind("ffn"))
    assert compared > 0 or not routed


def test_hidden_states(case):
    loaded, _, _, output, _ = case
    config, captured = loaded.config, output.captured
    layers = [[captured[f"bottom/{i}"]] for i in range(config.num_bottom)]
    for s in range(config.num_chunks):
        layers.append(list(captured[f"chunks/{s}"]))
        if config.anchor_after_chunk:
            layers.append([captured[f"anchors/{s}"]])
    layers += [[captured[f"top/{i}"]] for i in range(config.num_top)]
    ours = {"hidden_final": output.hidden, "hidden_pre_lnf": captured["pre_norm"], "hidden/embed": captured["embed"]}
    for i, steps in enumerate(layers):
        ours |= {f"hidden/h{i}/step{j}": x for j, x in enumerate(steps)}
    stored = {name for name in loaded.arrays if name.startswith("hidden")}
    assert stored or config.num_classes  # the classifier's golden has no hidden states
    for name in stored:
        close(loaded, name, ours[name])


def test_gradients(case):
    loaded, gradient, _, _, _ = case
    ours = params_to_official(jax.tree.map(np.asarray, gradient), loaded.config)
    assert set(loaded.grads) == set(ours) - {"lm_head.weight"}  # tied: its gradient is the token embedding's
    for name, value in loaded.grads.items():
        close(loaded, f"grad/{name}", ours[name], value)
