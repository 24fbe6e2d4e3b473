import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from audiovae_jax.distributed import mesh
from audiovae_jax.performance.planning import hlo
from audiovae_jax.performance.planning.hlo import Collective

# As XLA writes them for two hosts of GPUs, and for a TPU slice.
GPU = """HloModule jit_step, is_scheduled=true

%region_0.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

ENTRY %main.9 (p.1: f32[256], p.2: bf16[8,4]) -> (f32[256], bf16[8,4]) {
  %p.1 = f32[256]{0} parameter(0)
  %p.2 = bf16[8,4]{1,0} parameter(1)
  %all-reduce-start = f32[256]{0} all-reduce-start(%p.1), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%region_0.1
  %copy.1 = bf16[8,4]{0,1} copy(%p.2), metadata={op_name="jit(step)/transpose[permutation=(1, 0)]"}
  %all-reduce-done = f32[256]{0} all-reduce-done(%all-reduce-start)
  %gemm = (bf16[8,4]{0,1}, s8[1024]{0}) custom-call(%copy.1, /*index=1*/%p.2), custom_call_target="__cublas$gemm"
  %out = bf16[8,4]{0,1} get-tuple-element(%gemm), index=0
  ROOT %tuple = (f32[256]{0}, bf16[8,4]{0,1}) tuple(%all-reduce-done, %out)
}
"""
TPU = """HloModule jit_step, is_scheduled=true

ENTRY %main.9 (p.1: f32[7,4,4], p.2: f32[4]) -> f32[4] {
  %p.1 = f32[7,4,4]{0,2,1:T(4,128)S(1)} parameter(0)
  %p.2 = f32[4]{0:T(128)S(1)} parameter(1)
  %all-reduce.7 = (f32[7,4,4]{0,2,1:T(4,128)S(1)}, f32[4]{0:T(128)S(1)}) all-reduce(%p.1, %p.2), replica_groups=[2,8]<=[16], to_apply=%add
  ROOT %gte = f32[4]{0:T(128)S(1)} get-tuple-element(%all-reduce.7), index=1
}
"""  # noqa: E501


def test_a_start_and_its_end_are_one_collective():
    assert hlo.collectives(GPU) == [Collective("all-reduce", 1024, 4)]


def test_tuples_with_layouts_and_counted_groups_are_read():
    assert hlo.collectives(TPU) == [Collective("all-reduce", 4 * (7 * 4 * 4 + 4), 8)]


@pytest.mark.parametrize(
    ("groups", "devices"), [("mesh['d'=4] {'d'}", 4), ("mesh['a'=2,'d'=8] {'a','d'}", 16), ("mesh['d'=4] {}", None)]
)
def test_groups_of_a_mesh_are_read(groups, devices):
    text = TPU.replace("[2,8]<=[16]", groups)
    assert [found.devices for found in hlo.collectives(text)] == [devices]


def test_traffic_is_what_the_entrys_instructions_read_and_write():
    start = 2 * 1024  # the operand and the result
    copy = 2 * 64
    gemm = 64 + 1024 + 2 * 64
    assert hlo.entry_traffic(GPU) == start + copy + gemm


def test_a_loop_counts_as_often_as_it_runs():
    def rounds(x, length):
        return lax.scan(lambda carry, _: (jnp.sin(carry @ x), None), x, None, length=length)[0]

    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    three, ten = (hlo.entry_traffic(jax.jit(rounds, static_argnums=1).lower(x, n).compile().as_text()) for n in (3, 10))
    body = 3 * 64 * 64 * 4 + 2 * 64 * 64 * 4  # a product and a sine
    assert ten - three == pytest.approx(7 * body, rel=0.3)


def test_unreadable_text_counts_nothing():
    assert hlo.collectives("") == []
    assert hlo.entry_traffic("ENTRY %main {\n  %x = token[] after-all()\n  junk = = (\n") == 0


@pytest.fixture(scope="module")
def compiled():
    devices = mesh.make_mesh()

    def step(scale, audio):
        total = lax.psum(jnp.sum(audio, 0) * scale, "data")
        return total, lax.all_gather(audio[:1], "data")

    mapped = jax.jit(
        jax.shard_map(step, mesh=devices, in_specs=(P(), P("data")), out_specs=(P(), P("data")), check_vma=False)
    )
    audio = jax.ShapeDtypeStruct((8, 100), jnp.float32, sharding=NamedSharding(devices, P("data")))
    return mapped.lower(jax.ShapeDtypeStruct((), jnp.float32), audio).compile()


def test_a_real_program_for_a_mesh(compiled):
    found = sorted(hlo.collectives(compiled.as_text()), key=lambda collective: collective.op)
    assert found == [Collective("all-gather", 400, 4), Collective("all-reduce", 400, 4)]


def test_traffic_is_near_to_what_the_compiler_counts(compiled):
    counted = compiled.cost_analysis()["bytes accessed"]
    assert hlo.entry_traffic(compiled.as_text()) == pytest.approx(counted, rel=0.3)
