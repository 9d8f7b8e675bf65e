"""Collectives read from the text of compiled programs: of a text by hand, and of real ones (tests/sharded_kinds.py)."""

import pytest

from hybrid.traffic import Traffic, by_kind, total, traffic

TEXT = """HloModule jit_step, is_scheduled=true, entry_computation_layout={...}, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (carry: (s32[], f32[8])) -> (s32[], f32[8]) {
  %x = f32[8]{0} get-tuple-element(%carry), index=1
  %moved = f32[8]{0} collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{1,2},{2,3}}
  ROOT %next = (s32[], f32[8]{0}) tuple(%i, %moved)
}

%condition (carry: (s32[], f32[8])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%branch (x: bf16[4,8]) -> bf16[4,8] {
  ROOT %turned = bf16[4,8]{1,0} all-to-all(%x), channel_id=2, replica_groups=[2,2]<=[4], dimensions={0}
}

ENTRY %main (p: f32[16,8]) -> f32[16,8] {
  %p = f32[16,8]{1,0} parameter(0)
  %summed = (f32[16,8]{1,0}, f32[]) all-reduce(%p, %q), channel_id=3, replica_groups={{0,1},{2,3}}, to_apply=%add
  %whole = f32[64,8]{1,0} all-gather(%p), channel_id=4, replica_groups=[1,4]<=[4], dimensions={0}
  %part = f32[4,8]{1,0} reduce-scatter(%p), channel_id=5, replica_groups=[1,4]<=[4], to_apply=%add
  %looped = (s32[], f32[8]) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %unknown = (s32[], f32[8]{0}) while(%t), condition=%condition, body=%body
  %either = bf16[4,8]{1,0} conditional(%flag, %y, %z), branch_computations={%branch, %branch}
  ROOT %out = f32[16,8]{1,0} copy(%p)
}
"""


def test_every_collective_counts_as_often_as_it_runs():
    assert traffic(TEXT) == [
        Traffic("all-gather", 1, 0.75 * 64 * 8 * 4),
        Traffic("all-reduce", 1, 2 * 0.5 * (16 * 8 + 1) * 4),
        Traffic("all-to-all", 1, 0.5 * 4 * 8 * 2),
        Traffic("reduce-scatter", 1, 3 * 4 * 8 * 4),
        Traffic("collective-permute", 1, 8 * 4 * 3 / 4, (0,)),
        Traffic("collective-permute", 5, 5 * 8 * 4 * 3 / 4, (5,)),
    ]


def test_kinds_and_bytes_are_added_up_over_loops():
    lines = traffic(TEXT)
    assert by_kind(lines)["collective-permute"] == Traffic("collective-permute", 6, 6 * 8 * 4 * 3 / 4)
    assert total(lines) == pytest.approx(sum(line.bytes for line in lines))


def test_a_program_of_one_device_says_nothing():
    assert traffic("HloModule jit_f\n\nENTRY %main (p: f32[]) -> f32[] {\n  ROOT %p = f32[] parameter(0)\n}\n") == []
