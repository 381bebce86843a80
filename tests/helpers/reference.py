"""A plain, slow Mixture-of-Modules: the oracle for values and, by `jax.grad`, for gradients.

Python loops over layers, steps and modules; every module sees every token, and what a token chose is a mask. Nothing
here is shared with the library but `ModelConfig`. Letters as in mom_jax/config.
"""

import math

import jax
import jax.numpy as jnp

NEVER = -math.inf
LOWEST = float(jnp.finfo(jnp.float32).min)


def forward(params, ids_BxL, config, *, mask=None, noise=None, prior=None, step=None, last_index=None):
    """Everything the model computes on the way, under the goldens' names.

    mask: [B, L], 1 for tokens and 0 for padding. noise: gru_random's, {'attention' and 'ffn': [S, H, B, L, R]}.
    prior: {side: [H, C]} in the place of the one that `config` says. step: the training step, for annealed preferences
    (None: full strength). last_index: [B], the position that a classifier reads. `logits` is [B, num_classes] for a
    classifier and [B, L, V] otherwise. Beside the goldens' names there are `{attn,ffn}_logits/i`, the router's
    logits after the temperature and before the prior.
    """
    out = {}
    length = ids_BxL.shape[1]
    x = params["embed"]["tokens"][ids_BxL] + params["embed"]["positions"][:length][None]
    out["hidden/embed"] = x

    layer = 0
    for i in range(config.num_bottom):
        x = anchor(params["bottom"][i], x, mask, config)
        out[f"hidden/h{layer}/step0"] = x
        layer += 1
    for s in range(config.num_chunks):
        chunk, states = params["chunks"][s], {"attention": None, "ffn": None, "left": jnp.zeros(ids_BxL.shape, bool)}
        for h in range(config.num_steps):
            for side in ("attention", "ffn"):
                u = None if noise is None else noise[side][s, h]
                table = None if prior is None else prior.get(side)
                x = x + sublayer(chunk, side, x, h, states, mask, u, table, step, config, out, s * config.num_steps + h)
            out[f"hidden/h{layer}/step{h}"] = x
        layer += 1
        if config.anchor_after_chunk:
            x = anchor(params["anchors"][s], x, mask, config)
            out[f"hidden/h{layer}/step0"] = x
            layer += 1
    for i in range(config.num_top):
        x = anchor(params["top"][i], x, mask, config)
        out[f"hidden/h{layer}/step0"] = x
        layer += 1

    out["hidden_pre_lnf"] = x
    x = layer_norm(x, params["final_norm"]["scale"], params["final_norm"]["bias"], config)
    out["hidden_final"] = x
    if config.num_classes:
        last = jnp.stack([x[b, last_index[b]] for b in range(x.shape[0])])
        out["logits"] = last @ params["head"]["kernel"]
    else:
        out["logits"] = x @ (params["embed"]["tokens"] if config.tie_embeddings else params["lm_head"]["kernel"]).T
    return out


# Layers.


def layer_norm(x, scale, bias, config):
    mean = jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, -1, keepdims=True)
    return affine((x - mean) / jnp.sqrt(variance + config.layer_norm_epsilon), scale, bias)


def affine(x, scale, bias):
    return x * scale[None, None] + bias[None, None]


def linear(x, kernel, bias):
    return x @ kernel + bias[None, None]


def activate(x, config):
    if config.activation == "relu":
        return jnp.maximum(x, 0)
    if config.activation == "gelu":
        return x * (1 + jax.scipy.special.erf(x / math.sqrt(2))) / 2
    return x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def attend(qkv, mask, config):
    """Causal multi-head attention, one head after the other."""
    q, k, v = jnp.split(qkv, 3, axis=-1)
    length, size = qkv.shape[1], config.head_dim
    visible = jnp.tril(jnp.ones((length, length), bool))[None]
    if mask is not None:
        visible = visible & (jnp.asarray(mask) != 0)[:, None, :]
    heads = []
    for a in range(config.num_heads):
        part = slice(a * size, (a + 1) * size)
        logits = jnp.einsum("bid,bjd->bij", q[..., part], k[..., part]) / math.sqrt(size)
        weights = jax.nn.softmax(jnp.where(visible, logits, LOWEST), -1)
        heads.append(jnp.einsum("bij,bjd->bid", weights, v[..., part]))
    return jnp.concatenate(heads, -1)


def anchor(params, x, mask, config):
    """A GPT-2 layer."""
    x = x + attention([params["attention"]], x, [None], [None], mask, config)
    return x + ffn([params["ffn"]], x, [None], [None], config)


def attention(modules, x, chosen, weights, mask, config, own=None):
    """The modules' joint attention. chosen, weights: for each module None (always, with weight 1) or [B, L, 1].

    own: the module whose queries and keys are used instead of the chosen ones'.
    """
    qkv = 0.0
    for module, picked, weight in zip(modules, chosen, weights, strict=True):
        y = layer_norm(x, module["norm_scale"], module["norm_bias"], config)
        kernel, bias = module["qkv_kernel"], module["qkv_bias"]
        y = linear(y, kernel.reshape(kernel.shape[0], -1), bias.reshape(-1))
        qkv = qkv + scaled(y, picked, weight if config.weighted_qkv else None, config)
    if own is not None:
        y = layer_norm(x, own["norm_scale"], own["norm_bias"], config)
        q, k = (linear(y, own["qkv_kernel"][:, i], own["qkv_bias"][i]) for i in (0, 1))
        qkv = jnp.concatenate([q, k, qkv[..., 2 * config.d_model :]], -1)
    heads = attend(qkv, mask, config)
    out = 0.0
    for module, picked, weight in zip(modules, chosen, weights, strict=True):
        out = out + scaled(linear(heads, module["out_kernel"], module["out_bias"]), picked, weight, config)
    return out


def ffn(modules, x, chosen, weights, config):
    out = 0.0
    for module, picked, weight in zip(modules, chosen, weights, strict=True):
        y = layer_norm(x, module["norm_scale"], module["norm_bias"], config)
        y = activate(linear(y, module["in_kernel"], module["in_bias"]), config)
        out = out + scaled(linear(y, module["out_kernel"], module["out_bias"]), picked, weight, config)
    return out


def scaled(y, picked, weight, config):
    """y where a token picked the module, times its weight."""
    if weight is not None:
        y = y * (straight_through(weight) if config.router.straight_through else weight)
    return y if picked is None else jnp.where(picked, y, 0.0)


@jax.custom_vjp
def straight_through(weight):
    return jnp.sign(weight)


straight_through.defvjp(lambda weight: (jnp.sign(weight), None), lambda _, g: (jnp.clip(g, -1, 1),))


# One side of one assembly step.


def sublayer(chunk, side, x, h, states, mask, noise, prior, step, config, out, i):
    """What the side adds to the residual stream at step h; i is the step's number over all chunks, for `out`."""
    count, kind, short = config.modules(side), config.kind(side), {"attention": "attn", "ffn": "ffn"}[side]
    modules = [{name: array[m] for name, array in chunk[side].items()} for m in range(count)]
    if kind == "routed":
        router = chunk[f"{side}_router"]
        logits, states[side] = route(router, x, h, states[side], noise, config)
        prior_C = jnp.asarray(prior_row(config, side, h, step) if prior is None else prior[h], jnp.float32)
        only_skip = jnp.array([NEVER] * (logits.shape[-1] - 1) + [0.0])
        table = jnp.where(states["left"][..., None], only_skip[None, None], prior_C[None, None])
        share, within = getattr(config, side).capacity, None
        if share is not None:
            margin = jnp.max((logits + table)[..., :-1], -1) - (logits + table)[..., -1]
            within = best(margin, mask, share)
            out[f"{short}_margin/{i}"], out[f"{short}_within/{i}"] = margin, within
        balance = router.get("balance_bias", jnp.zeros(logits.shape[-1]))
        out[f"{short}_ranked/{i}"] = logits + table + balance[None, None]
        scores, ids, chosen, weights = select(logits, table, balance, count, config, side, within)
        if getattr(config, side).exit:
            states["left"] = states["left"] | (ids[..., 0] == logits.shape[-1] - 1)
        out[f"{short}_logits/{i}"], out[f"{short}_scores/{i}"], out[f"{short}_topk_ids/{i}"] = logits, scores, ids
        if states[side] is not None:
            out[f"{short}_gru_state/{i}"] = states[side]
    else:
        modules = [modules[own_module(config, side, h)] if kind == "ordered" else modules[0]]
        chosen = weights = [None]
    if side == "attention":
        own = modules[own_module(config, side, h)] if config.attention.routes == "values" else None
        return attention(modules, x, chosen, weights, mask, config, own)
    return ffn(modules, x, chosen, weights, config)


def route(params, x, h, state, noise, config):
    """The router's logits [B, L, C] at step h, divided by the temperature unless scoring is raw, with the step's bias,
    and its new state."""
    router = config.router
    if router.norm == "layer":
        x = standardise(x, config)
    if router.kind == "linear":
        hidden = x
    elif router.kind == "mlp":
        hidden = jnp.maximum(linear(x, params["hidden_kernel"], params["hidden_bias"]), 0)
    elif router.kind == "mingru":
        z, n = gates(linear(x, params["input_kernel"], params["input_bias"]), router.dim)
        before = jnp.zeros(n.shape) if state is None else state
        hidden = state = (1 - jax.nn.sigmoid(z)) * before + jax.nn.sigmoid(z) * n
    elif router.kind == "transformer":
        hidden, state = attend_to_steps(params, x, h, state, config)
    else:
        if state is None:
            state = jnp.zeros((*x.shape[:2], router.dim))
        gates_x = gates(linear(x, params["input_kernel"], params["input_bias"]), router.dim)
        gates_h = gates(linear(state, params["state_kernel"], params["state_bias"]), router.dim)
        r = jax.nn.sigmoid(gates_x[0] + gates_h[0])
        z = jax.nn.sigmoid(gates_x[1] + gates_h[1])
        n = jnp.tanh(gates_x[2] if router.kind == "gru_dev" else gates_x[2] + r * gates_h[2])
        state = n + z * (state - n)
        if router.kind == "gru_random":
            if noise is None:
                assert not router.noise_in_evaluation, "this configuration needs noise"
                noise = jnp.full(state.shape, 0.5)
            p = jax.nn.sigmoid(gates_x[3] + gates_h[3])
            state = p * state + (1 - p) * noise
        hidden = state
    logits = linear(hidden, params["score_kernel"], params["score_bias"])
    if router.scoring != "raw":
        logits = logits / router.temperature
    if router.kind == "hierarchical":
        p_skip = jax.nn.sigmoid(logits[..., -1:])
        logits = jnp.log(jnp.concatenate([(1 - p_skip) * jax.nn.softmax(logits[..., :-1], -1), p_skip], -1))
    if router.step_bias is not None:
        logits = logits + params["step_bias"][h][None, None]
    return logits, state


def standardise(x, config):
    mean = jnp.mean(x, -1, keepdims=True)
    return (x - mean) / jnp.sqrt(jnp.mean((x - mean) ** 2, -1, keepdims=True) + config.layer_norm_epsilon)


def attend_to_steps(params, x, h, entries, config):
    """A pre-norm transformer layer over a token's steps 0..h; entries: [B, L, H, R], what it has of them."""
    if entries is None:
        entries = jnp.zeros((*x.shape[:2], config.num_steps, config.router.dim))
    y = linear(x, params["input_kernel"], params["input_bias"]) + params["step_embedding"][h][None, None]
    entries = entries.at[:, :, h].set(standardise(y, config))
    heads = []
    query = jnp.split(entries[:, :, h] @ params["query_kernel"], config.router.heads, -1)
    for a in range(config.router.heads):
        key, value = (entries[:, :, : h + 1] @ params[f"{name}_kernel"][:, a] for name in ("key", "value"))
        logits = jnp.einsum("bld,blsd->bls", query[a], key) / math.sqrt(key.shape[-1])
        heads.append(jnp.einsum("bls,blsd->bld", jax.nn.softmax(logits, -1), value))
    y = y + linear(jnp.concatenate(heads, -1), params["attention_kernel"], params["attention_bias"])
    inner = jnp.maximum(linear(standardise(y, config), params["in_kernel"], params["in_bias"]), 0)
    y = y + linear(inner, params["out_kernel"], params["out_bias"])
    return standardise(y, config), entries


def gates(x, width):
    return [x[..., g * width : (g + 1) * width] for g in range(x.shape[-1] // width)]


def own_module(config, side, h):
    schedule = getattr(config, side).schedule
    return h if schedule is None else schedule[h]


def best(margin, mask, share):
    """Which of each row's real tokens are among the share of them with the largest margins, [B, L] bool."""
    rows = []
    for b in range(margin.shape[0]):
        real = jnp.ones(margin.shape[1], bool) if mask is None else jnp.asarray(mask[b]) != 0
        count = jnp.maximum(1, jnp.round(share * jnp.sum(real.astype(jnp.float32))).astype(jnp.int32))
        first = jnp.argsort(-jnp.where(real, margin[b], NEVER))  # of equals the earlier
        among = (jnp.argsort(first) < count) & (margin[b] > NEVER)
        rows.append((among | (margin[b] == -NEVER)) & real)
    return jnp.stack(rows)


def prior_row(config, side, h, step):
    """The prior on the C logits of that side at step h."""
    choice, classes = getattr(config, side), config.classes(side)
    if choice.prior is not None:
        return list(choice.prior[h])
    h = own_module(config, side, h)
    if choice.choice == "ordered_or_skip":
        return [0.0 if c in (*own_modules(config, side, h), classes - 1) else NEVER for c in range(classes)]
    rest = 1.0
    if choice.anneal_steps and step is not None:
        strongest = max(abs(choice.preference), abs(choice.skip_preference))
        uniform = min(1.0, max(1e-9, step / choice.anneal_steps))  # the uniform distribution's share in the prior
        odds = (1 - uniform + uniform / classes) / (uniform / classes)
        rest = min(1.0, math.log(odds) / strongest)
    skip = classes - 1 if config.skip else None
    row = [0.0] * classes
    if config.skip:
        row[skip] = rest * choice.skip_preference
    own = own_modules(config, side, h)
    for preferred in own or ([] if skip is None else [skip]):
        row[preferred] = rest * choice.preference
    return row


def own_modules(config, side, layer):
    """The modules that are made of a layer."""
    parts = (config.d_ff or 4 * config.d_model) // config.module_d_ff if side == "ffn" and config.module_d_ff else 1
    return [m for m in range(layer * parts, layer * parts + parts) if m < config.modules(side)]


def select(logits, prior, balance, count, config, side, within=None):
    """The reported scores [B, L, C], the K classes by score [B, L, K], and for each of `count` modules who chose it and
    with what weight, both [B, L, 1]. A class that the prior forbids is null; so is SKIP for tokens within a capacity,
    and all else for tokens that are not, with ids of C. prior: [B, L, C]. balance: [C], a bias of what ranks. within:
    [B, L], with a capacity.
    """
    router, classes = config.router, logits.shape[-1]
    shifted = logits + prior
    if router.scoring == "softmax":
        scores = weight = jax.nn.softmax(shifted, -1)
    elif router.scoring == "sigmoid":
        allowed = prior > NEVER
        weight = jnp.where(allowed, jax.nn.sigmoid(logits), 0.0)
        scores = jnp.where(allowed, jax.nn.sigmoid(jnp.where(allowed, shifted, 0.0)), 0.0)
        scores = scores / jnp.sum(scores, -1, keepdims=True)
    else:
        scores, weight = shifted, logits
    may = jnp.ones(scores.shape, bool)
    if within is not None:
        is_skip = (jnp.arange(classes) == classes - 1)[None, None]
        may = jnp.where(within[..., None], ~is_skip, is_skip)
    ranked = jnp.where(may, shifted + balance[None, None], NEVER)
    # A class's rank is how many others are before it; of equals the first is before.
    earlier = jnp.tril(jnp.ones((classes, classes), bool), -1)[None, None]
    mine, theirs = ranked[..., :, None], ranked[..., None, :]
    rank = jnp.sum((theirs > mine) | ((theirs == mine) & earlier), -1)
    top = min(config.side_top_k(side), classes)
    ids = jnp.stack([jnp.argmax(rank == k, -1) for k in range(top)], -1)

    taken = (rank < top) & may
    ids = jnp.where(jnp.take_along_axis(may, ids, -1), ids, classes)
    if router.all_modules:
        taken = jnp.ones_like(taken)
    elif config.weights(side) == "renormalised":
        weight = weight / jnp.sum(jnp.where(taken, weight, 0.0), -1, keepdims=True)
    weight = weight * getattr(config, side).scale
    taken = taken & (prior > NEVER)
    # With fewer classes than modules the last modules are never chosen.
    reachable = range(min(count, classes))
    nobody = [jnp.zeros_like(taken[..., :1])] * (count - len(reachable))
    chosen = [taken[..., m : m + 1] for m in reachable] + nobody
    weights = [weight[..., m : m + 1] for m in reachable] + [0.0 * weight[..., :1]] * len(nobody)
    return scores, ids, chosen, weights


# Losses.


def losses(params, ids_BxL, labels, config, **kwargs):
    """The total loss and its parts: `loss` (language model or classifier), `aux_loss` (balance) and `z_loss`."""
    total, (parts, _) = losses_and_forward(params, ids_BxL, labels, config, **kwargs)
    return total, parts


def losses_and_forward(params, ids_BxL, labels, config, **kwargs):
    """(the total loss, (its parts, what `forward` gives)).

    labels: [B, L], not yet shifted, -100 ignored; or [B] for a classifier. kwargs: as for `forward`.
    """
    out, mask = forward(params, ids_BxL, config, **kwargs), kwargs.get("mask")
    logits, targets = (out["logits"], labels) if config.num_classes else (out["logits"][:, :-1], labels[:, 1:])
    counted = targets != -100
    log_p = jax.nn.log_softmax(logits, -1)
    picked = jnp.take_along_axis(log_p, jnp.where(counted, targets, 0)[..., None], -1)[..., 0]
    loss = -jnp.sum(jnp.where(counted, picked, 0.0)) / jnp.sum(counted.astype(jnp.float32))
    aux, z, capacity = (part(out, mask, config) for part in (balance_loss, z_loss, capacity_loss))
    total = loss + config.balance.weight * aux + config.z_loss * z + config.capacity_loss * capacity
    return total, ({"loss": loss, "aux_loss": aux, "z_loss": z, "capacity_loss": capacity}, out)


def routed(config):
    """The routed sides, by the goldens' short names."""
    if not config.num_chunks:
        return []
    return [short for short, side in (("attn", "attention"), ("ffn", "ffn")) if config.kind(side) == "routed"]


def steps(out, name, config):
    return [out[f"{name}/{i}"] for i in range(config.num_chunks * config.num_steps)]


def token_mean(x, mask):
    """The mean over tokens of x [B, L, ...], padding left out."""
    if mask is None:
        return jnp.mean(x, (0, 1))
    weight = jnp.asarray(mask, jnp.float32).reshape(*mask.shape, *[1] * (x.ndim - 2))
    return jnp.sum(x * weight, (0, 1)) / jnp.sum(weight)


def balance_loss(out, mask, config):
    sides = routed(config)
    if config.balance.needs_routed_attention and "attn" not in sides:
        return jnp.zeros(())
    total = jnp.zeros(())
    for side in sides:
        fractions, probabilities = [], []
        for scores in steps(out, f"{side}_scores", config):
            again = config.router.scoring == "raw" or config.balance.softmax_again
            p = jax.nn.softmax(scores, -1) if again else scores
            top1 = jax.nn.one_hot(jnp.argmax(scores, -1), scores.shape[-1])
            fractions.append(token_mean(top1, mask))
            probabilities.append(token_mean(p, mask))
        f, p = jnp.stack(fractions), jnp.stack(probabilities)
        if config.balance.kind == "global":
            f, p = jnp.mean(f, 0, keepdims=True), jnp.mean(p, 0, keepdims=True)
        total = total + f.shape[-1] * jnp.mean(jnp.sum(f * p, -1))
    return total


def z_loss(out, mask, config):
    total = jnp.zeros(())
    for side in routed(config):
        each = [
            token_mean(jax.scipy.special.logsumexp(logits, -1) ** 2, mask)
            for logits in steps(out, f"{side}_logits", config)
        ]
        total = total + jnp.mean(jnp.stack(each))
    return total


def capacity_loss(out, mask, config):
    """The cross-entropy between who is within a capacity and the sigmoid of the margin."""
    total = jnp.zeros(())
    for side in routed(config):
        if f"{side}_margin/0" not in out:
            continue
        each = []
        for i in range(config.num_chunks * config.num_steps):
            margin, within = out[f"{side}_margin/{i}"], out[f"{side}_within/{i}"]
            known = jnp.abs(margin) == -NEVER
            p = jax.nn.sigmoid(jnp.where(known, 0.0, margin))
            each.append(token_mean(jnp.where(known, 0.0, -jnp.log(jnp.where(within, p, 1 - p))), mask))
        total = total + jnp.mean(jnp.stack(each))
    return total
