"""Known shapes, as settings of the `Decoder`, and the one dial that sets a whole run.

`PRESETS[name]` holds everything but the vocabulary, which is the tokenizer's.
"""

import math
from typing import Any

from tessera.errors import SettingError

_GPT2 = {
    "context": 1024,
    "attention": "gqa",
    "position": "learned",
    "norm": "layer",
    "placement": "pre",
    "feed_forward": {"name": "gelu", "approximate": "tanh"},
    "tied": True,
    "bias": True,
    "init": {"name": "normal", "std": 0.02, "scale_residual": True},
}
"""Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", and the weights that were published."""

_LLAMA = {
    "norm": {"name": "rms", "eps": 1e-5},
    "placement": "pre",
    "feed_forward": "swiglu",
    "bias": False,
    "init": {"name": "normal", "std": 0.02, "scale_residual": True},
}
"""Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models"."""


def _gpt2(n_layers: int, n_heads: int, d_model: int) -> dict[str, Any]:
    return _GPT2 | {"n_layers": n_layers, "n_heads": n_heads, "d_model": d_model}


def _llama(
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    d_model: int,
    d_ff: int | None,
    *,
    context: int,
    base: float = 10_000.0,
    tied: bool = False,
) -> dict[str, Any]:
    return _LLAMA | {
        "n_layers": n_layers,
        "n_heads": n_heads,
        "d_model": d_model,
        "d_ff": d_ff,
        "context": context,
        "attention": {"name": "gqa", "n_kv_heads": n_kv_heads},
        "position": {"name": "rope", "base": base},
        "tied": tied,
    }


def _local(attention: dict[str, Any], window: int, *, n_local: int = 1) -> list[dict[str, Any]]:
    """Layers with a window, then one that sees everything."""
    return [attention | {"window": window}] * n_local + [attention]


def _gemma(n_layers: int, n_heads: int, d_model: int, d_ff: int, *, context: int) -> dict[str, Any]:
    return {
        "n_layers": n_layers,
        "n_heads": n_heads,
        "d_head": 256,
        "d_model": d_model,
        "d_ff": d_ff,
        "context": context,
        "norm": {"name": "rms", "eps": 1e-6},
        "placement": "sandwich",
        "feed_forward": {"name": "geglu", "approximate": "tanh"},
        "embedding_scale": d_model**0.5,
        "tied": True,
        "bias": False,
        "init": _LLAMA["init"],
    }


_MISTRAL = _llama(32, 32, 8, 4096, 14336, context=32_768)
_QWEN2 = _llama(24, 14, 2, 896, 4864, context=32_768, base=1e6, tied=True)
_QWEN3 = _llama(28, 16, 8, 1024, 3072, context=40_960, base=1e6, tied=True)
_GEMMA2 = _gemma(26, 8, 2304, 9216, context=8192)
_GEMMA3 = _gemma(26, 4, 1152, 6912, context=32_768)
_SMALL_EPS = {"norm": {"name": "rms", "eps": 1e-6}}

_YARN_40 = {
    "name": "yarn",
    "factor": 40.0,
    "original_context": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}
_EXPERTS_64 = {"name": "moe", "n_experts": 64, "n_active": 6, "n_shared": 2, "d_expert": 1408, "normalize": False}
_DEEPSEEK_V2_LITE: dict[str, Any] = {
    "n_layers": 27,
    "n_heads": 16,
    "d_model": 2048,
    "d_ff": 10_944,
    "context": 163_840,
    "attention": {
        "name": "mla",
        "d_latent": 512,
        "d_nope": 128,
        "d_rope": 64,
        "d_value": 128,
        "eps": 1e-6,
        "scale": 192**-0.5 * (0.1 * 0.707 * math.log(40.0) + 1.0) ** 2,  # YaRN's gain, which the rotation leaves to it
    },
    "position": {"name": "rope", "base": 10_000.0, "layout": "interleaved", "scaling": _YARN_40},
    "feed_forward": ["swiglu"] + [_EXPERTS_64] * 26,
}

PRESETS: dict[str, dict[str, Any]] = {
    # A model that a test trains in a second.
    "tiny": _llama(2, 2, 1, 32, None, context=32),
    # nanoGPT's setting for characters on a CPU.
    "nano": _gpt2(4, 4, 128) | {"context": 64, "bias": False, "feed_forward": {"name": "gelu", "approximate": "none"}},
    # What two cores train in minutes, on ten megabytes: the model of `tessera demo`.
    "demo": {
        "context": 256,
        "d_model": 192,
        "n_layers": 3,
        "n_heads": 3,
        "attention": {"name": "gqa", "qk_norm": True},
        "tied": False,
    },
    "gpt2": _gpt2(12, 12, 768),
    "gpt2-medium": _gpt2(24, 16, 1024),
    "gpt2-large": _gpt2(36, 20, 1280),
    "gpt2-xl": _gpt2(48, 25, 1600),
    "llama-135m": _llama(30, 9, 3, 576, 1536, context=2048, base=10_000.0, tied=True),
    "llama-1.1b": _llama(22, 32, 4, 2048, 5632, context=2048),
    "llama-2-7b": _llama(32, 32, 32, 4096, 11008, context=4096),
    "llama-3-8b": _llama(32, 32, 8, 4096, 14336, context=8192, base=500_000.0),
    "smollm2-135m": _llama(30, 9, 3, 576, 1536, context=8192, base=100_000.0, tied=True),
    # Jiang et al. 2023, version 0.1, and Jiang et al. 2024, "Mixtral of Experts".
    "mistral-7b": _MISTRAL | {"attention": {"name": "gqa", "n_kv_heads": 8, "window": 4096}},
    "mixtral-8x7b": _MISTRAL
    | {
        "position": {"name": "rope", "base": 1e6},
        "feed_forward": {"name": "moe", "n_experts": 8, "n_active": 2, "normalize": True},
    },
    # Qwen 2.5: biases on queries, keys and values. Qwen 3: norms on queries and keys instead.
    "qwen2.5-0.5b": _QWEN2
    | _SMALL_EPS
    | {"attention": {"name": "gqa", "n_kv_heads": 2, "bias": True, "output_bias": False}},
    "qwen3-0.6b": _QWEN3
    | _SMALL_EPS
    | {"attention": {"name": "gqa", "n_kv_heads": 8, "qk_norm": True, "qk_eps": 1e-6}, "d_head": 128},
    # Gemma 2: every second layer has a window, scores and logits are bounded. Gemma 3: five of six layers, and their
    # rotation is faster.
    "gemma-2-2b": _GEMMA2
    | {
        "attention": _local({"name": "gqa", "n_kv_heads": 4, "score_cap": 50.0}, 4096),
        "position": {"name": "rope", "base": 10_000.0},
        "logit_cap": 30.0,
    },
    "gemma-3-1b": _GEMMA3
    | {
        "attention": _local({"name": "gqa", "n_kv_heads": 1, "qk_norm": True, "qk_eps": 1e-6}, 512, n_local=5),
        "position": [{"name": "rope", "base": 10_000.0}] * 5 + [{"name": "rope", "base": 1e6}],
    },
    # DeepSeek-AI 2024, "DeepSeek-V2", the small one.
    "deepseek-v2-lite": _LLAMA | _SMALL_EPS | _DEEPSEEK_V2_LITE,
}
"""The Llama shapes are SmolLM 135M, TinyLlama 1.1B, Llama 2 7B and Llama 3 8B."""


def depth_settings(depth: int) -> dict[str, Any]:
    """Every setting of a run that follows from the number of layers, as groups of a recipe.

    One dial, because the good values of the others move together with it:

    - width 64 x depth, in heads of 64 (of 32 below depth 4), as the GPT-2 and Llama families roughly have it;
    - context 64 x depth, rounded to a power of two, at most 2,048;
    - tokens a step grow as the parameters do, depth^3: 4,096 at depth 4, 110,000 at depth 12, so that training on 20
      tokens a parameter (Hoffmann et al. 2022, "Chinchilla") is about 15,000 steps at each depth;
    - peak learning rate 6e-4 x 768 / width, at most 3e-3. That the step shrinks as the width grows is what
      maximal-update parametrisation derives (Yang et al. 2022); the constant is GPT-3's at 768 wide, and its 2e-4 at
      2,048 follows;
    - cosine schedule to a tenth, after a warm-up over 2 % of the steps.
    """
    if depth < 1:
        raise SettingError("depth", depth, "at least 1")
    d_model = 64 * depth
    context = 2 ** min(11, round(math.log2(d_model)))
    batch_size = max(4, round(64 * depth**3 / context))
    n_params = 12 * depth * d_model**2
    steps = math.ceil(20 * n_params / (batch_size * context))
    return {
        "model": {
            "n_layers": depth,
            "d_model": d_model,
            "n_heads": d_model // (64 if depth >= 4 else 32),
            "context": context,
        },
        "optimizer": {"name": "adamw", "lr": min(3e-3, round(6e-4 * 768 / d_model, 6))},
        "schedule": {"name": "cosine", "warmup": max(10, steps // 50), "floor": 0.1},
        "train": {"batch_size": batch_size, "steps": steps},
    }
