"""Makes tests/goldens/gpt2: small random GPT-2s with their logits and greedy tokens, by `transformers`.

    python tests/goldens/make_gpt2_goldens.py        (needs the extra [torch]; about ten seconds)

NAME.json has the model's config.json as `save_pretrained` writes it, and the versions. NAME.npz has the state dict as
`state/...`, `ids` [B, L], `logits` [B, L, V] and `greedy` [B, N], the tokens that follow `ids`.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import torch
import transformers

FOLDER = Path(__file__).parents[1] / "goldens" / "gpt2"
SIZES = {"vocab_size": 31, "n_positions": 24, "n_embd": 16, "n_head": 2, "n_layer": 2}
PLAIN = {"bos_token_id": None, "eos_token_id": None}
MODELS = {
    "tied": {"n_layer": 3},
    "untied": {"tie_word_embeddings": False},
    "scaled_by_layer": {"scale_attn_by_inverse_layer_idx": True, "n_layer": 5},
    "gelu": {"activation_function": "gelu", "n_head": 4},
    "relu": {"activation_function": "relu", "layer_norm_epsilon": 1e-2},
    "inner": {"n_inner": 24, "activation_function": "gelu_pytorch_tanh"},
    "one_layer": {"n_layer": 1},
}
NEW_TOKENS = 8
GAP = 1e-3  # between the two largest logits: rounding must not decide a token
VARIETY = 3  # different tokens in what follows


def random_model(config, seed):
    """A GPT-2 whose biases and layer norms are random as well, far from their initial values."""
    generator = torch.Generator().manual_seed(seed)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = float(".ln_" in name and name.endswith("weight"))
            parameter.copy_(centre + 0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def run(model, ids):
    """(logits [B, L, V] of ids, greedy tokens [B, N] that follow them, the smallest gap that decided one)."""
    with torch.no_grad():
        logits, sequence, gaps = model(ids).logits, ids, []
        for _ in range(NEW_TOKENS):
            last = model(sequence).logits[:, -1]
            best = last.topk(2).values
            gaps.append((best[:, 0] - best[:, 1]).min())
            sequence = torch.cat([sequence, last.argmax(-1, keepdim=True)], 1)
    return logits, sequence[:, ids.shape[1] :], min(gaps)


def make(options):
    """(a model, its input, logits and greedy tokens) by the first seed with telling tokens."""
    for seed in itertools.count():
        model = random_model(transformers.GPT2Config(**(SIZES | PLAIN | options)), seed)
        ids = torch.randint(SIZES["vocab_size"], (2, 11), generator=torch.Generator().manual_seed(seed))
        logits, greedy, gap = run(model, ids)
        if gap > GAP and min(len(set(row)) for row in greedy.tolist()) >= VARIETY:
            return model, {"ids": ids.int().numpy(), "logits": logits.numpy(), "greedy": greedy.int().numpy()}


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    for name, options in MODELS.items():
        model, arrays = make(options)
        model.config.architectures = [type(model).__name__]
        meta = {"config": json.loads(model.config.to_json_string()), "versions": versions}
        (FOLDER / f"{name}.json").write_text(json.dumps(meta, indent=1) + "\n")
        state = {f"state/{key}": value.numpy() for key, value in model.state_dict().items()}
        np.savez_compressed(FOLDER / f"{name}.npz", **state, **arrays)


if __name__ == "__main__":
    main()
