"""What transformers computes: the same weights, written out and read in by it, and its `generate` with a cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.peers import torch


def load(config: Any, params: Mapping[str, Any], folder: str, family: str) -> Any:
    """The model of transformers with these parameters, in float32."""
    torch()
    import transformers

    from hybrid import to_huggingface

    to_huggingface(config, params, folder, family)
    transformers.logging.set_verbosity_error()  # that fast kernels of a GPU are missing
    transformers.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def generate(model: Any, prompt: Any, tokens: int) -> Any:
    """(batch, tokens) likeliest tokens after a prompt (batch, length) of numpy."""
    t = torch()
    given = t.from_numpy(prompt)
    with t.inference_mode():
        out = model.generate(
            given, attention_mask=t.ones_like(given), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
            use_cache=True, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
    return out[:, given.shape[1] :].numpy()
