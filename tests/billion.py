"""Compiles a training step of a model of a billion parameters for 64 simulated devices and prints what it would take:
for test_billion.py. Nothing of the model is ever allocated.

    python -m tests.billion
"""

from __future__ import annotations

import dataclasses
import json
import sys

from experiments import environment

MESH = {"fsdp": 16, "tensor": 4}
BATCH, LENGTH = 16, 2048
MODEL = {
    "pattern": "((M-)4A-(M-)3)3", "vocab_size": 65536, "d_model": 1536, "n_heads": 24, "n_kv_heads": 8, "d_ff": 4608,
    "positions": "none", "remat": "unit", "scan_layers": True, "mamba": {"inner_norm": True},
}  # fmt: skip
"""Jamba's build: a period of eight mixers with attention in its midst, an MLP after each."""


def main() -> int:
    environment.prepare(devices=64)
    import time

    from experiments.step import ONCE, Program
    from hybrid.accounting import parameters
    from hybrid.traffic import traffic
    from tests.experiments.training import trial

    begun = time.process_time()
    one = trial(model=MODEL, data__seq_len=LENGTH, data__batch_size=BATCH, mesh=MESH)
    compiled = Program(one).planned({"tokens": (BATCH, LENGTH), "labels": (BATCH, LENGTH)}, ONCE)
    memory = compiled.memory_analysis()
    said = {
        "parameters": parameters(one.model).total,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "traffic": [dataclasses.asdict(line) for line in traffic(compiled.as_text())],
        "cpu_seconds": round(time.process_time() - begun, 1),
    }
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
