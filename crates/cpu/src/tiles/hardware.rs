//! AMX, by inline assembly: its intrinsics are not stable, nor are its names as target features.

use super::{HELD_WORDS, Left, ROWS, Right, SIDE, STEP_WORDS, Sums};
use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

/// Bytes of a tile's row.
const ROW_BYTES: usize = 64;

/// CPUID leaf 7, register edx.
const AMX_BF16: u32 = 1 << 22;
const AMX_TILE: u32 = 1 << 24;
/// CPUID leaf 1, register ecx: the system saves what XCR0 says.
const OSXSAVE: u32 = 1 << 27;
/// XCR0: the system saves the configuration and the tiles.
const XCR0_TILES: u64 = 0b11 << 17;

/// Whether the processor has tiles and the system lets this process use them; else why not.
pub(super) fn ask() -> Result<(), &'static str> {
    if __cpuid(0).eax < 7 || __cpuid_count(7, 0).edx & (AMX_BF16 | AMX_TILE) != AMX_BF16 | AMX_TILE {
        return Err("the processor has no AMX-BF16");
    }
    // SAFETY: with OSXSAVE there is `xgetbv`.
    if __cpuid(1).ecx & OSXSAVE == 0 || unsafe { xcr0() } & XCR0_TILES != XCR0_TILES {
        return Err("the system does not save AMX's tiles");
    }
    if permission() != 0 {
        return Err("the system refuses AMX's tiles to this process (arch_prctl)");
    }
    Ok(())
}

#[target_feature(enable = "xsave")]
unsafe fn xcr0() -> u64 {
    // SAFETY: the feature is enabled, by the caller's promise that it is there.
    unsafe { _xgetbv(0) }
}

/// Asks Linux to make room for tiles in the state of this process's threads, those to come included. Returns 0 or an
/// error's number, negative.
fn permission() -> i64 {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let result: i64;
    // SAFETY: a system call with two numbers, which touches no memory of ours; the kernel overwrites rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Palette 1: eight tiles, of so many rows of so many bytes.
#[repr(C, align(64))]
struct Palette([u8; 64]);

static PALETTE: Palette = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = ROW_BYTES as u8;
        bytes[48 + tile] = ROWS as u8;
        tile += 1;
    }
    Palette(bytes)
};

/// # Safety
/// [`ask`] must have said yes.
pub(super) unsafe fn configure() {
    // SAFETY: the caller's promise; the palette has 64 bytes, of which this instruction reads all.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const PALETTE, options(nostack, readonly)) }
}

/// # Safety
/// [`ask`] must have said yes.
pub(super) unsafe fn release() {
    // SAFETY: the caller's promise.
    unsafe { asm!("tilerelease", options(nostack, nomem)) }
}

/// So many products of four tiles of sums, of whatever the tiles hold: zeros.
///
/// # Safety
/// Tiles must be configured.
pub(super) unsafe fn multiply(products: usize) {
    // SAFETY: the caller's promise; no memory is touched.
    unsafe {
        asm!(
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {n}",
            "jnz 2b",
            n = inout(reg) products => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            options(nostack, nomem),
        );
    }
}

/// Rows by two tiles of columns, of a depth of one or two steps. The right operand is loaded once and stays in tiles (4 and 5
/// of the first step, 6 and 7 of the second), while rows of the left one (0 and 1) and of the sums (2 and 3) go by.
///
/// # Safety
/// As [`super::Tiles::product`], `depth` at most two steps; and tiles must be configured.
#[inline(always)]
pub(super) unsafe fn product<const ADD: bool>(rows: usize, depth: usize, a: Left, b: Right, to: Sums) {
    // SAFETY: the caller's promise: `rows` rows of the left operand and of the sums are there, a multiple of ROWS, and `depth`
    // of the right one, each of two tiles' width where tiles lie side by side. What is in tiles is used within one `asm!` only.
    unsafe {
        asm!(
            "tileloadd tmm4, [{b} + {b_row}*1]",
            "tileloadd tmm5, [{b} + {b_row}*1 + 64]",
            "cmp {depth}, 16",
            "je 4f",
            "tileloadd tmm6, [{d} + {b_row}*1]",
            "tileloadd tmm7, [{d} + {b_row}*1 + 64]",
            // Two steps.
            "2:",
            "test {add:e}, {add:e}",
            "jz 3f",
            "tileloadd tmm2, [{c} + {row}*1]",
            "tileloadd tmm3, [{c} + {row}*1 + 64]",
            "jmp 5f",
            "3:",
            "tilezero tmm2",
            "tilezero tmm3",
            "5:",
            "tileloadd tmm0, [{a} + {a_row}*1]",
            "tileloadd tmm1, [{a} + {a_row}*1 + 64]",
            "tdpbf16ps tmm2, tmm0, tmm4",
            "tdpbf16ps tmm3, tmm0, tmm5",
            "tdpbf16ps tmm2, tmm1, tmm6",
            "tdpbf16ps tmm3, tmm1, tmm7",
            "tilestored [{c} + {row}*1], tmm2",
            "tilestored [{c} + {row}*1 + 64], tmm3",
            "add {a}, {a_next}",
            "add {c}, {c_next}",
            "dec {n}",
            "jnz 2b",
            "jmp 7f",
            // One step.
            "4:",
            "test {add:e}, {add:e}",
            "jz 3f",
            "tileloadd tmm2, [{c} + {row}*1]",
            "tileloadd tmm3, [{c} + {row}*1 + 64]",
            "jmp 5f",
            "3:",
            "tilezero tmm2",
            "tilezero tmm3",
            "5:",
            "tileloadd tmm0, [{a} + {a_row}*1]",
            "tdpbf16ps tmm2, tmm0, tmm4",
            "tdpbf16ps tmm3, tmm0, tmm5",
            "tilestored [{c} + {row}*1], tmm2",
            "tilestored [{c} + {row}*1 + 64], tmm3",
            "add {a}, {a_next}",
            "add {c}, {c_next}",
            "dec {n}",
            "jnz 4b",
            "7:",
            add = in(reg) u32::from(ADD),
            depth = in(reg) depth,
            n = inout(reg) rows / ROWS => _,
            a = inout(reg) a.p => _,
            c = inout(reg) to.p => _,
            b = in(reg) b.p,
            d = in(reg) b.p.wrapping_add(STEP_WORDS * b.step),
            a_row = in(reg) 4 * a.row,
            b_row = in(reg) 4 * b.step,
            row = in(reg) 4 * to.row,
            a_next = in(reg) 4 * ROWS * a.row,
            c_next = in(reg) 4 * ROWS * to.row,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

const _: () =
    assert!(SIDE == 2 * ROWS && 4 * STEP_WORDS == ROW_BYTES && HELD_WORDS == 32 && STEP_WORDS == 16);
