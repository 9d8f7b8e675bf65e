"""What can be recomputed to the last digit: cache sizes, a published pattern, parameter counts."""

from __future__ import annotations

from experiments.claims.claim import Claim, Finding, Scale, exact

GIB = 1 << 30
TOKENS = 262_144

CACHES = {
    "Jamba": ("(M-M-M-M-A-M-M-M-)4", 4096, 32, 8, 4),
    "Mixtral 8x7B": ("(A-)32", 4096, 32, 8, 32),
    "Mistral 7B": ("(A-)32", 4096, 32, 8, 32),
    "Llama 3.1 8B": ("(A-)32", 4096, 32, 8, 32),
    "Llama 2 7B": ("(A-)32", 4096, 32, 32, 128),
    "Jamba 1.5 Large": ("(M-M-M-M-A-M-M-M-)9", 8192, 64, 8, 9),
    "Llama 3.1 70B": ("(A-)80", 8192, 64, 8, 80),
    "Mistral Large 2": ("(A-)88", 12288, 96, 8, 88),
}
"""Model -> pattern, d_model, heads, heads of keys and values, and the GiB that were published, of 16-bit numbers."""

NVIDIA_8B = "M-M-M--M-M*-M-M-M-M--M*-M-M-M-M-M*--M-M-M-M-M*-M--M-M-M-"
EVEN = {8: "MMMM*MMM", 16: "MMMMM*MMMM*MMMMM", 32: "MMMMMM*MMMMM*MMMMMM*MMMMM*MMMMMM"}
"""Mixers -> the string of Megatron's own generator with one mixer of 8 attention."""

PARAMETERS = {
    "gpt2": 124_439_808,
    "llama": 8_030_261_248,
    "mistral": 7_241_732_096,
    "mamba": 129_135_360,
}
"""Preset -> parameters of the published implementation."""


def caches() -> list[Finding]:
    from hybrid.accounting import cache_bytes
    from hybrid.config import ModelConfig

    found = []
    for name, (pattern, d_model, heads, kv_heads, gib) in CACHES.items():
        model = ModelConfig(pattern=pattern, vocab_size=32000, d_model=d_model, n_heads=heads, n_kv_heads=kv_heads)
        found.append(exact(name, gib, cache_bytes(model, TOKENS) / GIB, "GiB of keys and values at 256k tokens"))
    return found


def patterns() -> list[Finding]:
    from hybrid.placement import place
    from hybrid.readers import to_megatron

    made = place(mixers=28, base="D", insert="A", count=4, where="even", channel="-", channel_where="even")
    found = [exact("8B hybrid: 4 of 28 mixers, evenly, channels evenly", NVIDIA_8B, to_megatron(made))]
    for mixers, string in EVEN.items():
        ours = to_megatron(place(mixers, "D", "A", "1/8"))
        found.append(exact(f"1/8 of {mixers} mixers", string, ours))
    return found


def counts() -> list[Finding]:
    import hybrid
    from hybrid.accounting import parameters

    found = {name: parameters(hybrid.preset(name)).total for name in PARAMETERS}
    return [exact(name, PARAMETERS[name], total, "parameters") for name, total in found.items()]


NOTHING = {"cpu": Scale("", minutes=0.05)}

CLAIMS = (
    Claim(
        name="kv-cache",
        about="How large is the cache of a hybrid at 256k tokens?",
        source="Lieber et al. 2024 (Jamba), table 1; Jamba team 2024 (Jamba 1.5), table 1",
        published="4 GiB for Jamba against 32 for Mistral and Mixtral and 128 for Llama 2",
        agreement="the same number of GiB for each of eight models",
        computed=caches,
        scales=NOTHING,
    ),
    Claim(
        name="nvidia-pattern",
        about="Is the pattern of NVIDIA's 8B hybrid what even placement gives?",
        source="Waleffe et al. 2024 (2406.07887), section 3.3; Megatron-LM's generator",
        published=NVIDIA_8B,
        agreement="the same string, character for character, and Megatron's for 8, 16 and 32 mixers",
        computed=patterns,
        scales=NOTHING,
    ),
    Claim(
        name="parameter-counts",
        about="Do the presets have the published numbers of parameters?",
        source="the published implementations and weights of GPT-2, Llama 3.1 8B, Mistral 7B and Mamba 130M",
        published="124,439,808; 8,030,261,248; 7,241,732,096; 129,135,360",
        agreement="equal",
        computed=counts,
        scales=NOTHING,
    ),
)
