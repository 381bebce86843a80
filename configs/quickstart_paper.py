"""The quickstart with the paper's routing: attention and FFNs of any layer at any step, GRU routers, K = 2.

Command: python -m train.main --config configs/quickstart_paper.py
"""

from mom_jax.config import MeshConfig, ModelConfig, RouterConfig
from train.config import CheckpointConfig, Config, DataConfig, OptimConfig, Phase


def get_config() -> Config:
    model = ModelConfig(
        vocab_size=0,  # the tokenizer's
        context_length=128,
        d_model=128,
        num_heads=4,
        num_bottom=1,
        num_top=1,
        num_attn_modules=4,
        num_ffn_modules=4,
        num_steps=4,
        top_k=2,
        router=RouterConfig(dim=64, temperature=1.0),
    )
    data = DataConfig(vocab_size=2048, batch_size=16, length=128)
    return Config(
        model=model,
        data=data,
        phases=(
            Phase("pretrain", 350, model="vanilla", optim=OptimConfig(learning_rate=2e-3, warmup_steps=50)),
            Phase(
                "mom",
                350,
                init_from="previous",
                optim=OptimConfig(learning_rate=2e-3, warmup_steps=50, router_multiplier=3.0),
            ),
        ),
        mesh=MeshConfig(data=1),  # one device, however many there are
        checkpoint=CheckpointConfig(every=100),
        run="runs/quickstart_paper",
        evaluate_every=100,
        final_batches=48,
    )
