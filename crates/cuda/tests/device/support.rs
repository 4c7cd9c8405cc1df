//! Kernels written by hand.

pub(crate) use crate::gpu::{gpu, say};
use signflash_cuda::{Arg, DeviceBuffer, Function, Program, Stream};

/// out = a + scale * b, n of them.
pub(crate) const ADD: &str = "
.version 7.0
.target sm_80
.address_size 64
.visible .entry add_scaled(
    .param .u64 a,
    .param .u64 b,
    .param .u64 out,
    .param .u32 n,
    .param .f32 scale
) {
    .reg .pred %p;
    .reg .b32 %i, %n, %block, %threads;
    .reg .b64 %a, %b, %out, %offset;
    .reg .f32 %x, %y, %scale;
    ld.param.u64 %a, [a];
    ld.param.u64 %b, [b];
    ld.param.u64 %out, [out];
    ld.param.u32 %n, [n];
    ld.param.f32 %scale, [scale];
    mov.u32 %i, %tid.x;
    mov.u32 %block, %ctaid.x;
    mov.u32 %threads, %ntid.x;
    mad.lo.u32 %i, %block, %threads, %i;
    setp.ge.u32 %p, %i, %n;
    @%p ret;
    mul.wide.u32 %offset, %i, 4;
    add.u64 %a, %a, %offset;
    add.u64 %b, %b, %offset;
    add.u64 %out, %out, %offset;
    ld.global.f32 %x, [%a];
    ld.global.f32 %y, [%b];
    fma.rn.f32 %x, %y, %scale, %x;
    st.global.f32 [%out], %x;
    ret;
}
";

/// Writes 256 bytes of 0 and 1 that depend on the seed in memory, then adds 1 to it. One block of 256 threads.
pub(crate) const DRAW: &str = "
.version 7.0
.target sm_80
.address_size 64
.visible .entry draw(.param .u64 seed, .param .u64 out) {
    .reg .pred %p;
    .reg .b32 %i, %s, %x, %y;
    .reg .b64 %seed, %out, %offset;
    ld.param.u64 %seed, [seed];
    ld.param.u64 %out, [out];
    mov.u32 %i, %tid.x;
    ld.global.u32 %s, [%seed];
    bar.sync 0;
    mul.lo.u32 %x, %s, 747796405;
    mad.lo.u32 %x, %i, 1103515245, %x;
    shr.u32 %y, %x, 16;
    xor.b32 %x, %x, %y;
    mul.lo.u32 %x, %x, 73244475;
    shr.u32 %x, %x, 31;
    cvt.u64.u32 %offset, %i;
    add.u64 %out, %out, %offset;
    st.global.u8 [%out], %x;
    setp.ne.u32 %p, %i, 0;
    @%p ret;
    add.u32 %s, %s, 1;
    st.global.u32 [%seed], %s;
    ret;
}
";

/// What [`DRAW`] writes.
pub(crate) fn drawn(seed: u32) -> Vec<u8> {
    let bit = |i: u32| {
        let x = seed.wrapping_mul(747_796_405).wrapping_add(i.wrapping_mul(1_103_515_245));
        ((x ^ (x >> 16)).wrapping_mul(73_244_475) >> 31) as u8
    };
    (0..256).map(bit).collect()
}

/// A program of a text without shared memory, its parameters so many bytes each.
pub(crate) fn program(entry: &str, ptx: &str, parameter_bytes: &[usize], block_threads: u32) -> Program {
    let (entry, ptx, parameter_bytes) = (entry.into(), ptx.into(), parameter_bytes.into());
    Program { entry, ptx, parameter_bytes, block_threads, ..Program::default() }
}

/// [`ADD`] in blocks of 128 threads.
pub(crate) fn add_program() -> Program {
    program("add_scaled", ADD, &[8, 8, 8, 4, 4], 128)
}

/// Runs [`ADD`] on 1000 numbers and compares.
pub(crate) fn check_add(add: &Function, stream: &Stream) {
    let n = 1000u32;
    let bytes = |f: fn(f32) -> f32| -> Vec<u8> { (0..n).flat_map(|i| f(i as f32).to_le_bytes()).collect() };
    let a = DeviceBuffer::from_host(stream, &bytes(|i| i)).unwrap();
    let b = DeviceBuffer::from_host(stream, &bytes(|i| 2.0 - i)).unwrap();
    let out = DeviceBuffer::zeroed(stream, 4 * n as usize).unwrap();
    let args = [Arg::from(&a), Arg::from(&b), Arg::from(&out), Arg::U32(n), Arg::F32(0.5)];
    // SAFETY: the three buffers hold `n` numbers each and live until the result has been read.
    unsafe { add.launch(stream, n.div_ceil(add.block_threads()), &args) }.unwrap();
    assert_eq!(out.to_host(stream).unwrap(), bytes(|i| i + 0.5 * (2.0 - i)));
}
