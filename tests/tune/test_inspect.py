"""Reading registers and spills out of what compilers print."""

from __future__ import annotations

import pytest

from mcgen.tune import inspect

PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'kern' for 'sm_80'
ptxas info    : Function properties for kern
    21424 bytes stack frame, 33516 bytes spill stores, 39500 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 21424 bytes cumulative stack size, 400 bytes cmem[0]
"""

# One reload before the loop, two in it, one in a block out of line that jumps back without closing a loop.
SASS = """\
.text.kern:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   STL [R1], R4 ;
        /*0020*/                   LDL R4, [R1] ;
        /*0030*/              @!P0 BRA `(.L_x_9) ;
.L_x_1:
        /*0040*/                   LDL.64 R6, [R1+0x8] ;
        /*0050*/                   BRA.U !UP0, `(.L_x_2) ;
        /*0060*/                   LDL.LU R8, [R1+0x10] ;
.L_x_2:
        /*0070*/               @P1 BRA `(.L_x_1) ;
.L_x_3:
        /*0080*/                   EXIT ;
.L_x_9:
        /*0090*/                   LDL R4, [R1+0x20] ;
        /*00a0*/                   BRA `(.L_x_3) ;
.L_x_10:
        /*00b0*/                   BRA `(.L_x_10) ;
"""

AMDGCN = """\
kern:                                   ; @kern
\ts_load_dwordx2 s[0:1], s[4:5], 0x0
\tscratch_store_dwordx4 off, v[0:3], off offset:16 ; 16-byte Folded Spill
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
\tscratch_load_dwordx4 v[0:3], off, off offset:16 ; 16-byte Folded Reload
\ts_cbranch_scc1 .LBB0_1
; %bb.2:
\tscratch_load_dword v0, off, off offset:16 ; 4-byte Folded Reload
\ts_endpgm
amdhsa.kernels:
  - .agpr_count:     0
    .sgpr_count:     60
    .sgpr_spill_count: 3
    .vgpr_count:     256
    .vgpr_spill_count: 4
"""


def test_ptxas_log() -> None:
    assert inspect.from_ptxas(PTXAS) == inspect.Usage(registers=32, spill_stores=33516, spill_loads=39500)


def test_a_log_without_figures_is_refused() -> None:
    with pytest.raises(ValueError, match="no resource usage"):
        inspect.from_ptxas("ptxas info    : 0 bytes gmem")


def test_reloads_in_loops_of_sass() -> None:
    assert inspect.sass_loop_loads(SASS) == (2, 2)


NESTED = """\
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDL R4, [R1] ;
.L_x_2:
        /*0020*/                   LDL R5, [R1+0x4] ;
        /*0030*/               @P1 BRA `(.L_x_2) ;
.L_x_3:
        /*0040*/                   MOV R6, R5 ;
        /*0050*/               @P2 BRA `(.L_x_3) ;
        /*0060*/                   LDL R7, [R1+0x8] ;
        /*0068*/                   CALL.REL.NOINC `($__internal_0_$__cuda_sm3x_div_rn_noftz_f32_slowpath) ;
        /*0070*/               @P3 CALL.REL.NOINC `(.L_x_4) ;
        /*0078*/                   BRA `(.L_x_1) ;
.L_x_4:
        /*0080*/                   EXIT ;
"""


def test_reloads_between_inner_loops_are_told_from_those_in_them() -> None:
    assert inspect.sass_loop_loads(NESTED) == (3, 1)


# A loop that waits for a product, with a reload before it in the loop around both.
WAITS = """\
.text.kern:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDL R4, [R1] ;
.L_x_2:
        /*0020*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P3, [UR17+0x2000], R4 ;
        /*0030*/              @!P3 BRA `(.L_x_2) ;
        /*0040*/               @P1 BRA `(.L_x_1) ;
        /*0050*/                   EXIT ;
"""


def test_a_loop_that_waits_is_no_loop_inside_another() -> None:
    assert inspect.sass_loop_loads(WAITS) == (1, 1)


def test_a_branch_is_known_from_a_conditional_one() -> None:
    lines = inspect.sass_instructions(SASS)
    assert [line.target for line in lines if line.target] == [".L_x_9", ".L_x_2", ".L_x_1", ".L_x_3", ".L_x_10"]
    assert [line.falls_through for line in lines if line.target] == [True, True, True, False, False]


def test_amdgcn_listing() -> None:
    assert inspect.from_amdgcn(AMDGCN) == inspect.Usage(
        registers=256, spill_stores=16, spill_loads=20, loop_spill_loads=1, inner_spill_loads=1
    )
