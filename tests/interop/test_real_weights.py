"""Published weights, where they were fetched: python scripts/fetch_weights.py smollm2 minilm"""

from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hybrid
from experiments import pretrained
from experiments.generate import command
from hybrid.interop.gguf import GgufFile
from hybrid.interop.gguf_tokenizer import read_tokenizer

pytestmark = pytest.mark.slow

AREOPAGITICA = (Path(__file__).parent / "areopagitica.txt").read_text()
"""5,556 bytes of Milton, 1644."""

BITS_PER_BYTE = 1.457375
"""Of SmolLM2-135M-Instruct (4 bits) on it, after the token that ends texts. transformers' Llama with the same weights,
float32: 1.4573754."""


def weights(name: str) -> Path:
    path = pretrained.path(name)
    if path is None:
        pytest.skip(f"the weights are not here; get them with: python scripts/fetch_weights.py {name}")
    return path


@pytest.fixture(scope="module")
def smollm2():
    file = GgufFile(weights("smollm2"))
    return *file.model(), read_tokenizer(file.metadata), file


def test_smollm2_is_what_its_makers_say(smollm2):
    config, params, _, _ = smollm2
    assert config.pattern == "(A-)30"
    assert (config.d_model, config.n_heads, config.n_kv_heads, config.d_ff) == (576, 9, 3, 1536)
    assert (config.vocab_size, config.attention.rope_theta, config.tie_embeddings) == (49152, 100000.0, True)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 134_515_008


def test_the_tokenizer_cuts_digits_apart_and_gives_every_text_back(smollm2):
    tokenizer = smollm2[2]
    for text in (AREOPAGITICA, "naïve 漢字 🙂👩‍👩‍👧\n\n\tdef f(x):  return x", "it's 3.14, 1999"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode(" 1999").tokens == ["Ġ", "1", "9", "9", "9"]
    assert tokenizer.encode("The capital of France is").ids == [504, 3575, 282, 4649, 314]
    assert tokenizer.encode("<|im_start|>user").ids[0] == 1


def test_the_capital_of_france(capsys):
    path = weights("smollm2")
    assert command([f"--weights={path}", "--prompt=The capital of France is", "--steps=3"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(" Paris.") and shown.err == ""


def test_bits_per_byte_of_a_fixed_text_and_the_logits_of_transformers(smollm2):
    config, params, tokenizer, file = smollm2
    tokens = jnp.asarray([[0, *tokenizer.encode(AREOPAGITICA).ids]])

    @jax.jit
    def score(params, tokens):
        logits = hybrid.apply(config, params, tokens)
        nats = -jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], -1)
        return nats, logits[:, :48]

    nats, first = score(params, tokens)
    bits = float(np.asarray(nats, np.float64).sum()) / math.log(2) / len(AREOPAGITICA.encode())
    assert bits == pytest.approx(BITS_PER_BYTE, abs=2e-5)

    from tests.interop import parity  # skips the rest, saying so, without torch
    from tests.interop.test_gguf import transformers_model

    def half_split(name):
        array = file.read(name)
        if ".attn_q." not in name and ".attn_k." not in name:
            return array
        heads = array.reshape(-1, 64, array.shape[1])
        return np.concatenate([heads[:, 0::2], heads[:, 1::2]], axis=1).reshape(array.shape)

    model = transformers_model(config, {name: half_split(name) for name in file.shapes})
    assert parity.difference(first, parity.theirs(model, np.asarray(tokens[:, :48]))) <= parity.TOLERANCE


def test_minilm_gives_the_hidden_states_of_transformers():
    folder = weights("minilm")
    from tokenizers import Tokenizer

    from tests.interop import parity  # skips, saying so, without torch and transformers

    bert = parity.transformers.BertModel
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    texts = ["The capital of France is Paris.", "Attention is all you need, they said; was it?", "Hybrid"]
    encoded = tokenizer.encode_batch(texts)
    tokens = np.asarray([row.ids for row in encoded])
    padding = np.asarray([row.attention_mask for row in encoded], bool)

    config, params = hybrid.from_huggingface(folder)
    assert (config.pattern, config.d_model, config.n_heads) == ("(B-)6", 384, 12)
    forward = jax.jit(lambda params, tokens, padding: hybrid.forward(config, params, tokens, padding=padding)[0])
    ours = forward(params, tokens, padding)
    with parity.quiet():
        model = bert.from_pretrained(folder, add_pooling_layer=False).float().eval()
    wanted = parity.theirs(model, tokens, padding)
    found = parity.difference(ours, wanted, padding)
    print(f"MiniLM: max |difference| / max |hidden| = {found:.1e}")
    assert found <= parity.TOLERANCE
