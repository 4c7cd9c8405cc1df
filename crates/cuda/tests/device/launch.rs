//! Compiling and launching.

use crate::support::{ADD, add_program, check_add, gpu, program, say};
use signflash_cuda::{Arg, CudaError, DeviceBuffer, Function, Program, Stream};
use std::process::Command;

/// Writes its last word of dynamic shared memory, reads it back and stores it.
const SHARED: &str = "
.version 7.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 shared_bytes[];
.visible .entry last_word(.param .u64 out, .param .u32 at) {
    .reg .b32 %at, %base, %x;
    .reg .b64 %out;
    ld.param.u64 %out, [out];
    ld.param.u32 %at, [at];
    mov.u32 %base, shared_bytes;
    add.u32 %at, %at, %base;
    mov.u32 %x, 12345;
    st.shared.u32 [%at], %x;
    bar.sync 0;
    ld.shared.u32 %x, [%at];
    st.global.u32 [%out], %x;
    ret;
}
";

/// Uses an instruction that only Hopper's own features have.
const HOPPER: &str = "
.version 8.0
.target sm_90a
.address_size 64
.visible .entry hopper() {
    wgmma.fence.sync.aligned;
    ret;
}
";

const TRAP: &str = "
.version 7.0
.target sm_80
.address_size 64
.visible .entry fails() { trap; }
";

#[test]
fn a_kernel_compiles_runs_and_computes() {
    let Some(device) = gpu() else { return };
    let add = Function::compile(&device, &add_program()).unwrap();
    say(&format!("{} registers, log: {}", add.registers(), add.jit_log()));
    assert!((1..=255).contains(&add.registers()));
    assert_eq!((add.local_bytes(), add.entry()), (0, "add_scaled"));
    assert!(add.blocks_per_sm().unwrap() >= 8);
    check_add(&add, &Stream::new(&device).unwrap());
    check_add(&add, &Stream::default_of(&device));
}

#[test]
fn the_compilers_log_is_in_the_error() {
    let Some(device) = gpu() else { return };
    let ptx = ADD.replace("fma.rn.f32 %x, %y, %scale, %x;", "fma.rn.f32 %x, %y, %unknown, %x;");
    let program = Program { ptx, ..add_program() };
    let error = Function::compile(&device, &program).unwrap_err();
    say(&error.to_string());
    let CudaError::Compile { log, .. } = &error else { panic!("{error}") };
    assert!(log.contains("%unknown") && log.contains("line"), "{log}");
    assert!(error.to_string().starts_with("compiling kernel `add_scaled` failed: CUDA_ERROR_INVALID_PTX"));
}

#[test]
fn arguments_are_checked_before_anything_runs() {
    let Some(device) = gpu() else { return };
    let stream = Stream::new(&device).unwrap();
    let add = Function::compile(&device, &add_program()).unwrap();
    // SAFETY: neither launch passes the checks, so nothing runs.
    let (too_few, too_narrow) = unsafe {
        let narrow = [Arg::U64(0), Arg::U64(0), Arg::U32(0), Arg::U32(0), Arg::F32(0.0)];
        (add.launch(&stream, 1, &[]), add.launch(&stream, 1, &narrow))
    };
    assert!(matches!(too_few, Err(CudaError::ArgumentCount { expected: 5, got: 0, .. })));
    assert!(matches!(too_narrow, Err(CudaError::ArgumentWidth { index: 2, expected: 8, got: 4, .. })));
}

#[test]
fn no_blocks_are_nothing_to_run() {
    let Some(device) = gpu() else { return };
    let stream = Stream::new(&device).unwrap();
    let add = Function::compile(&device, &add_program()).unwrap();
    let args = [Arg::U64(0), Arg::U64(0), Arg::U64(0), Arg::U32(0), Arg::F32(0.0)];
    // SAFETY: no block runs.
    unsafe { add.launch(&stream, 0, &args) }.unwrap();
    stream.synchronize().unwrap();
}

#[test]
fn a_name_that_the_text_lacks_is_a_sentence() {
    let Some(device) = gpu() else { return };
    let program = Program { entry: "add".into(), ..add_program() };
    assert!(matches!(Function::compile(&device, &program), Err(CudaError::NoEntry { .. })));
}

#[test]
fn a_block_may_have_more_than_48_kib_of_shared_memory() {
    let Some(device) = gpu() else { return };
    let stream = Stream::new(&device).unwrap();
    let bytes = device.info().smem_per_block_optin_bytes;
    let program = Program { dynamic_smem_bytes: bytes, ..program("last_word", SHARED, &[8, 4], 32) };
    let last_word = Function::compile(&device, &program).unwrap();
    let out = DeviceBuffer::zeroed(&stream, 4).unwrap();
    // SAFETY: `out` has room for the word that is written, and lives until it has been read.
    unsafe { last_word.launch(&stream, 1, &[Arg::from(&out), Arg::U32(bytes - 4)]) }.unwrap();
    assert_eq!(out.to_host(&stream).unwrap(), 12345u32.to_le_bytes());

    let more = Program { dynamic_smem_bytes: bytes + 1, ..program };
    let error = Function::compile(&device, &more).unwrap_err();
    assert!(matches!(error, CudaError::SharedMemory { .. }), "{error}");
}

#[test]
fn too_many_threads_are_a_sentence() {
    let Some(device) = gpu() else { return };
    for block_threads in [0, 1025] {
        let program = Program { block_threads, ..add_program() };
        let error = Function::compile(&device, &program).unwrap_err();
        assert!(matches!(error, CudaError::Threads { .. }), "{error}");
    }
}

#[test]
fn hoppers_own_instructions_compile_on_hopper() {
    let Some(device) = gpu() else { return };
    if device.info().compute_capability != (9, 0) {
        return say("skipped: this GPU is no Hopper");
    }
    let stream = Stream::new(&device).unwrap();
    let program = Program { is_accelerated: true, ..program("hopper", HOPPER, &[], 128) };
    let hopper = Function::compile(&device, &program).unwrap();
    // SAFETY: the kernel touches no memory.
    unsafe { hopper.launch(&stream, 1, &[]) }.unwrap();
    stream.synchronize().unwrap();
}

/// Tells a copy of this test program that it may break its context.
const BREAK: &str = "SIGNFLASH_TEST_BREAK_CONTEXT";

#[test]
fn a_kernel_that_fails_is_reported_when_waiting_for_it() {
    let Some(device) = gpu() else { return };
    if std::env::var_os(BREAK).is_none() {
        // A failed kernel makes the GPU unusable for its process: so in one of its own.
        let name = "launch::a_kernel_that_fails_is_reported_when_waiting_for_it";
        let mut copy = Command::new(std::env::current_exe().unwrap());
        let status = copy.args(["--exact", name]).env(BREAK, "1").status().unwrap();
        assert!(status.success());
        return;
    }
    let stream = Stream::new(&device).unwrap();
    let program = program("fails", TRAP, &[], 32);
    let fails = Function::compile(&device, &program).unwrap();
    // SAFETY: the kernel touches no memory.
    unsafe { fails.launch(&stream, 1, &[]) }.unwrap();
    let error = stream.synchronize().unwrap_err().to_string();
    say(&error);
    assert!(error.starts_with("waiting for the GPU failed: CUDA_ERROR_"), "{error}");
    assert!(error.contains("restart it"), "{error}");
}
