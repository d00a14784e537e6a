"""Usage of small programs in optimized HLO text, compared with sums made by hand."""

import pytest

from glide_jax.parallel.chips import chip_of
from glide_jax.plan.compiled import usage

V5E = chip_of("TPU v5 lite")

PROGRAM = """HloModule step, is_scheduled=true

%all-reduce-scatter.1 (p: bf16[64,128]) -> bf16[16,128] {
  %p = bf16[64,128]{1,0} parameter(0)
  %all-reduce.9 = bf16[64,128]{1,0} all-reduce(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %slice = bf16[16,128]{1,0} dynamic-slice(%all-reduce.9)
}

%condition (state: (s32[], f32[8])) -> pred[] {
  %state = (s32[], f32[8]{0}) parameter(0)
  %turns = s32[] constant(24)
  ROOT %compare = pred[] compare(%turns, %turns), direction=LT
}

%body (state.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state.1 = (s32[], f32[8]{0}) parameter(0)
  %fusion.1 = f32[8]{0} fusion(%state.1), backend_config={"window_config":{"estimated_cycles":"1500"}}
  %kernel = f32[8]{0} custom-call(%fusion.1), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"x","cost_estimate":{"flops":"197000000","transcendentals":"0","bytes_accessed":"810000","remote":"0"}}}
  %all-gather.1 = bf16[90000000]{0} all-gather(%kernel), replica_groups=mesh['axis_0'=16,'axis_1'=4] {'axis_1'}, dimensions={0}
  ROOT %tuple = (s32[], f32[8]{0}) tuple(%state.1)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %fusion.2 = f32[8]{0} fusion(%x), backend_config={"window_config":{"estimated_cycles":"1500000"}}
  %all-reduce-start = f32[45000000]{0} all-reduce-start(%fusion.2), replica_groups=[16,2]<=[32], to_apply=%add
  %fusion.3 = f32[8]{0} fusion(%x), metadata={op_name="jit(loss)/jvp()/while/body/dot_general" stack_frame_id=1}, backend_config={"window_config":{"estimated_cycles":"1500000"}}
  %all-reduce-done = f32[45000000]{0} all-reduce-done(%all-reduce-start)
  %while = (s32[], f32[8]{0}) while(%x), condition=%condition, body=%body
  %fusion.4 = bf16[16,128]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %all-reduce.2 = (bf16[45000000]{0}, bf16[45000000]{0}) all-reduce(%x, %x), replica_groups=[1,2]<=[2], to_apply=%add, backend_config={"collective_algorithm_config":{"strategy":"UniDirectionNDRingStrategy","debug":"\\nUniDirectionNDRingStrategy{colors:4 phases:2"}}
}
"""  # noqa: E501


def test_computation_counts_cycles_and_kernel_flops_of_every_loop_iteration():
    # 3 million cycles of 1.5 GHz; 24 times a microsecond of cycles, and the kernel's FLOPs.
    assert usage(PROGRAM, V5E).compute_s == pytest.approx(
        2e-3 + 24 * (1e-6 + 197e6 / V5E.kernel_flops)
    )


def test_computation_is_listed_by_jax_or_hlo_operation():
    found = usage(PROGRAM, V5E)
    assert found.operation_s == pytest.approx(
        {
            "dot_general": 1e-3,
            "fusion": 1e-3 + 24 * 1e-6,
            "custom-call": 24 * 197e6 / V5E.kernel_flops,
        }
    )


@pytest.mark.parametrize(
    "branches",
    [
        "true_computation=%body, false_computation=%main.1",
        "branch_computations={%body, %main.1, %body}",
    ],
)
def test_a_conditional_takes_its_slowest_branch(branches):
    quick, _, entry = PROGRAM.partition("ENTRY %main")
    quick += "%main.1 (y: f32[8]) -> f32[8] {\n  ROOT %y = f32[8]{0} parameter(0)\n}\n"
    once = f"  %either = f32[8]{{0}} conditional(%x, %x, %x), {branches}\n"
    marker = "  %while ="
    found = usage(quick + "\nENTRY %main" + entry.replace(marker, once + marker), V5E)
    plain = usage(PROGRAM, V5E)
    a_turn = 1e-6 + 197e6 / V5E.kernel_flops
    assert found.compute_s - plain.compute_s == pytest.approx(a_turn)
    assert found.collective_bytes["all-gather"] == plain.collective_bytes["all-gather"] * 25 / 24


def test_collectives_take_the_time_of_a_ring():
    found = usage(PROGRAM, V5E)
    assert found.collective_bytes == {
        "all-reduce": 180e6 + 180e6,
        "all-gather": 24 * 180e6,
        "reduce-scatter": 2 * 64 * 128,
    }
    # Of 4 chips, 3 parts go over two links of 45 GB/s; an all-reduce goes around twice.
    assert found.collective_s["all-gather"] == pytest.approx(24 * 180e6 * 3 / 4 / 90e9)
    assert found.collective_s["reduce-scatter"] == pytest.approx(2 * 64 * 128 * 3 / 4 / 90e9)
    started, with_four_rings = 2 * 180e6 / 2 / 90e9, 2 * 180e6 / 2 / 180e9
    assert found.collective_s["all-reduce"] == pytest.approx(started + with_four_rings)


def test_overlapped_communication_is_not_exposed():
    found = usage(PROGRAM, V5E)
    total = sum(found.collective_s.values())
    assert found.exposed_s == pytest.approx(total - 1e-3)  # %fusion.3 overlaps 1 of 2 ms
    assert found.step_s == found.compute_s + found.exposed_s


CHAIN = """HloModule step, is_scheduled=true

%start (p: bf16[16,128]) -> bf16[64,128] {
  ROOT %all-gather.1 = bf16[90000000]{0} all-gather(%p), replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="0"}
}

%between (p: bf16[16,128]) -> bf16[64,128] {
  ROOT %all-gather.2 = bf16[90000000]{0} all-gather(%p), replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="0"}
}

%done (p: bf16[16,128]) -> bf16[64,128] {
  ROOT %all-gather.3 = bf16[90000000]{0} all-gather(%p), replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="0"}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %async-collective-start.5 = bf16[90000000]{0} fusion(%x), kind=kCustom, calls=%start
  %fusion.1 = (f32[8]{0}, bf16[90000000]{0}) fusion(%x), kind=kCustom, calls=%between, backend_config={"window_config":{"estimated_cycles":"750000"}}
  ROOT %async-collective-done.5 = bf16[90000000]{0} fusion(%fusion.1), kind=kCustom, calls=%done
}
"""  # noqa: E501


def test_a_chain_of_instructions_is_one_collective():
    found = usage(CHAIN, V5E)
    assert found.collective_bytes == {"all-gather": 180e6}
    assert found.compute_s == pytest.approx(0.5e-3)
    assert found.collective_s["all-gather"] == pytest.approx(1.5e-3)
    assert found.exposed_s == pytest.approx(1e-3)


def test_a_chain_through_a_loop_is_one_collective():
    loop = """
%condition (state: (s32[], f32[8])) -> pred[] {
  %turns = s32[] constant(10)
  ROOT %compare = pred[] compare(%turns, %turns), direction=LT
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  ROOT %fusion.2 = (f32[8]{0}, bf16[90000000]{0}) fusion(%state), kind=kCustom, calls=%between, backend_config={"window_config":{"estimated_cycles":"75000"}}
}

ENTRY"""  # noqa: E501
    turns = "  %while = (s32[], f32[8]{0}) while(%x), condition=%condition, body=%body\n"
    program = CHAIN.replace("\nENTRY", loop).replace("  %fusion.1", turns + "  %fusion.1", 1)
    found = usage(program, V5E)
    assert found.collective_bytes == {"all-gather": 180e6}
    assert found.compute_s == pytest.approx(1e-3)
    assert found.exposed_s == pytest.approx(0.5e-3)


ON_SPARSE_CORES = """HloModule step, is_scheduled=true

%called (p: bf16[90000000], t: token[]) -> bf16[22500000] {
  ROOT %reduce-scatter.1 = bf16[22500000]{0} reduce-scatter(%p), replica_groups={{0,1,2,3}}, to_apply=%add
}, execution_thread="sparsecore"

ENTRY %main (x: f32[8]) -> f32[8] {
  %prepare_start = s32[]{:S(2)} custom-call(), custom_call_target="PrepareAsyncCallStart"
  %reduce-scatter.call-start = ((bf16[90000000]{0}, token[]), bf16[22500000]{0}) call-start(%x), async_execution_thread="sparsecore", to_apply=%called
  %fusion.1 = f32[8]{0} fusion(%x), backend_config={"window_config":{"estimated_cycles":"750000"}}
  ROOT %reduce-scatter.call-done = bf16[22500000]{0} call-done(%reduce-scatter.call-start)
}
"""  # noqa: E501


def test_collectives_on_sparse_cores_overlap_computation():
    found = usage(ON_SPARSE_CORES, V5E)
    assert found.collective_bytes == {"reduce-scatter": 180e6}
    assert found.compute_s == pytest.approx(0.5e-3)
    assert found.collective_s["reduce-scatter"] == pytest.approx(1.5e-3)
    assert found.exposed_s == pytest.approx(1e-3)
