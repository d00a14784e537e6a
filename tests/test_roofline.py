"""Times of a small GPU program in optimized HLO text, compared with sums made by hand."""

import pytest

from glide_jax.parallel.chips import chip_of
from glide_jax.plan.compiled import timing, usage
from glide_jax.plan.roofline import MATMUL_EFFICIENCY, MEMORY_EFFICIENCY

A100 = chip_of("NVIDIA A100-SXM4-80GB")

PROGRAM = """HloModule step, is_scheduled=true

%condition (state: (s32[], f32[8])) -> pred[] {
  %state = (s32[], f32[8]{0}) parameter(0)
  ROOT %compare = pred[] fusion(%state), kind=kLoop, calls=%fused_compare
}

%slice_computation (all: f32[6,1000000], row: s32[]) -> f32[1,1000000] {
  %all = f32[6,1000000]{1,0} parameter(0)
  %row = s32[] parameter(1)
  ROOT %slice = f32[1,1000000]{1,0} dynamic-slice(%all, %row), dynamic_slice_sizes={1,1000000}
}

%body (state.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state.1 = (s32[], f32[6,1000000]{1,0}) parameter(0)
  %row.1 = s32[] get-tuple-element(%state.1), index=0
  %all.1 = f32[6,1000000]{1,0} get-tuple-element(%state.1), index=1
  %sliced = f32[1,1000000]{1,0} fusion(%all.1, %row.1), kind=kLoop, calls=%slice_computation, metadata={op_name="jit(step)/while/body/slice"}
  ROOT %tuple = (s32[], f32[8]{0}) tuple(%state.1)
}

%gemm_computation (lhs: bf16[4,1024,2048], rhs: bf16[4,2048,512]) -> bf16[4,1024,512] {
  %lhs = bf16[4,1024,2048]{2,1,0} parameter(0)
  %rhs = bf16[4,2048,512]{2,1,0} parameter(1)
  ROOT %dot = bf16[4,1024,512]{2,1,0} dot(%lhs, %rhs), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}
}

ENTRY %main (x: bf16[8,64,64,256], w: bf16[512,3,3,256]) -> bf16[8] {
  %x = bf16[8,64,64,256]{3,2,1,0} parameter(0)
  %w = bf16[512,3,3,256]{3,2,1,0} parameter(1)
  %conv = (bf16[8,64,64,512]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="jit(step)/conv"}
  %y = bf16[8,64,64,512]{3,2,1,0} get-tuple-element(%conv), index=0
  %dx = (bf16[8,64,64,256]{3,2,1,0}, u8[0]{0}) custom-call(%y, %w), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput", metadata={op_name="jit(step)/conv_dx"}
  %dw = (bf16[512,3,3,256]{3,2,1,0}, u8[0]{0}) custom-call(%x, %y), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter", metadata={op_name="jit(step)/conv_dw"}
  %a = bf16[4,1024,2048]{2,1,0} bitcast(%x)
  %b = bf16[4,2048,512]{2,1,0} bitcast(%w)
  %gemm = bf16[4,1024,512]{2,1,0} fusion(%a, %b), kind=kCustom, calls=%gemm_computation, metadata={op_name="jit(step)/gemm"}
  %c = f32[4,1024,2048]{2,1,0} bitcast(%x)
  %d = f32[4,2048,512]{2,1,0} bitcast(%w)
  %cublas = (f32[4,1024,512]{2,1,0}, s8[4]{0}) custom-call(%c, %d), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(step)/cublas"}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]}}}
  %q = bf16[8,4096,8,64]{3,2,1,0} bitcast(%x)
  %k = bf16[8,4352,8,64]{3,2,1,0} bitcast(%x)
  %attention = (bf16[8,8,4096,64]{3,1,2,0}, f32[8,8,4096]{2,1,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmax", metadata={op_name="jit(step)/attention"}
  %while = (s32[], f32[6,1000000]{1,0}) while(%x), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  %all-reduce-start = f32[75000000]{0} all-reduce-start(%x), replica_groups=[1,8]<=[8], to_apply=%add
  %all-reduce-done = f32[75000000]{0} all-reduce-done(%all-reduce-start)
  ROOT %sum = f32[250000000]{0} add(%x, %x), metadata={op_name="jit(step)/sum"}
}
"""  # noqa: E501


def test_matmuls_convolutions_and_attention_take_their_flops_and_others_their_bytes():
    found = usage(PROGRAM, A100).operation_s
    rate, bandwidth = MATMUL_EFFICIENCY * 312e12, MEMORY_EFFICIENCY * 2e12
    conv_flops = 2 * 8 * 64 * 64 * 512 * 9 * 256
    matmul_flops = 2 * 4 * 1024 * 2048 * 512
    x_bytes = 2 * 8 * 64 * 64 * 256
    assert found == pytest.approx(
        {
            **dict.fromkeys(("conv", "conv_dx", "conv_dw"), conv_flops / rate),
            "gemm": matmul_flops / rate,
            "cublas": matmul_flops / (rate / 2),  # float32, as TensorFloat-32
            "attention": 4 * 8 * 8 * 4096 * 4352 * 64 / rate,
            "slice": 6 * (2 * 4e6 + 4) / bandwidth,  # a row, read and written, and its index
            "sum": (2 * x_bytes + 1e9) / bandwidth,
        }
    )


def test_gradients_cross_the_links_of_a_ring_of_gpus():
    found = usage(PROGRAM, A100)
    assert found.exposed_s == pytest.approx(2 * 3e8 * 7 / 8 / 3e11)
    assert found.collective_bytes == {"all-reduce": 3e8}
    assert timing(A100) == "a roofline at 50% of the peak FLOP/s and 80% of the bandwidth"
