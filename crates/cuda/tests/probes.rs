//! Every instruction on a GPU against the interpreter, on random words and edge cases, bit for bit where the
//! instruction is exact. Without a GPU the tests pass and say so; `SIGNFLASH_REQUIRE_GPU=1` makes that a failure.

#[path = "device/gpu.rs"]
mod gpu;

use gpu::{gpu, say};
use signflash_cuda::{CudaError, Device, DeviceBuffer, Function, Program, Stream};
use signflash_ptx::Target;
use signflash_ptx::probe::{self, Probe};

const SEEDS: u64 = 16;

/// What the GPU writes.
fn on_gpu(probe: &Probe, function: &Function, stream: &Stream, input: &[u32]) -> Result<Vec<u32>, CudaError> {
    let bytes: Vec<u8> = input.iter().flat_map(|word| word.to_le_bytes()).collect();
    let input = DeviceBuffer::from_host(stream, &bytes)?;
    let output = DeviceBuffer::zeroed(stream, 4 * probe.output_words)?;
    let args = probe.args(input.ptr(), output.ptr());
    // SAFETY: the buffers have the sizes that the probe asks for, the kernel accesses nothing else (the interpreter has
    // checked that), and both live until the result has been read.
    unsafe { function.launch(stream, probe.grid, &args) }?;
    let words = output.to_host(stream)?;
    Ok(words.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// How the GPU differs from the interpreter; nothing if it does not, or if it is too old for the probe.
fn difference(probe: &Probe, device: &Device, stream: &Stream) -> Option<String> {
    let needed = if probe.kernel.needs().target == Target::Sm80 { (8, 0) } else { (9, 0) };
    if device.info().compute_capability < needed {
        say(&format!("skipped on this GPU: {}", probe.name));
        return None;
    }
    let function = match Function::compile(device, &Program::from(&probe.kernel)) {
        Ok(function) => function,
        Err(error) => return Some(format!("{}: {error}", probe.name)),
    };
    (0..SEEDS).find_map(|seed| {
        let input = probe.input(seed);
        let expected = probe.interpret(&input, seed).unwrap_or_else(|trap| panic!("{trap}"));
        let got = on_gpu(probe, &function, stream, &input).unwrap_or_else(|error| panic!("{error}"));
        let differs = probe.compare(&expected, &got).err()?;
        let first = (0..got.len()).find(|&i| !probe.tolerance.allows(expected[i], got[i]))?;
        // What the table's rows read for this word.
        let words = input.chunks_exact(6).nth(first / 2).unwrap_or_default();
        Some(format!("{differs}; seed {seed}, operands of a row {words:08x?}"))
    })
}

#[test]
fn the_gpu_does_what_the_interpreter_does() {
    let Some(device) = gpu() else { return };
    let stream = Stream::new(&device).unwrap();
    let probes = probe::all();
    let differences: Vec<String> =
        probes.iter().filter_map(|probe| difference(probe, &device, &stream)).collect();
    say(&format!("{} probes, {SEEDS} inputs each", probes.len()));
    assert!(differences.is_empty(), "{differences:#?}");
}
