//! `signflash info`.

use crate::args::{EngineArgs, InfoArgs, VERSION};
use crate::engine::{DEVICES, Engine};
use crate::errors::Error;
use crate::{machine, memory};
use signflash_core::{Dropout, Dtype, Problem, ProblemError, Shape};
use signflash_cpu::{Isa, peak};
use signflash_cuda::{Device, ModuleCache};
use signflash_kernels::{
    BackwardCall, BackwardChoice, Config, ForwardCall, ForwardChoice, Gpu, Half, Kernels, NotHopper,
};
use std::io::Write;
use std::time::Duration;

/// Prints what this machine offers.
///
/// # Errors
/// [`Error::Stdout`]; with a device also those of opening it.
pub fn run(args: &InfoArgs, stdout: &mut dyn Write) -> Result<(), Error> {
    let chosen = args.device.as_deref().map(chosen).transpose()?;
    let names = |all: &[Isa]| all.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ");
    let memory = memory::available().map_or_else(|| "unknown".to_string(), memory::readable);
    let choice = Isa::choice();
    let lines = [
        ("version", VERSION.to_string()),
        ("cpu", machine::cpu_model()),
        ("threads", machine::cores().to_string()),
        ("memory", format!("{memory} available")),
        ("isa", format!("{} (chosen; --isa picks another)", choice.isa)),
        ("because", choice.because.clone()),
        ("rates", rates(choice.isa)),
        ("available", names(&Isa::available())),
        ("built in", names(&Isa::ALL)),
        ("devices", DEVICES.join(", ")),
    ];
    for (name, value) in lines.into_iter().chain(gpus()) {
        writeln!(stdout, "{name:<10} {value}").map_err(Error::Stdout)?;
    }
    chosen.map_or(Ok(()), |text| write!(stdout, "\n{text}").map_err(Error::Stdout))
}

/// How long each rate is measured.
const RATE_TIME: Duration = Duration::from_millis(4);

/// What a choice between instruction sets is about, as it is now: it does not depend on it.
fn rates(isa: Isa) -> String {
    let rate = |isa, dtype| peak::fma_gflops(isa, dtype, 1, RATE_TIME);
    let of_pairs = Isa::Avx512Bf16.is_available().then(|| rate(Isa::Avx512Bf16, Dtype::Bf16));
    let of_pairs =
        of_pairs.map(|rate| format!(", of bf16 pairs by avx512bf16 {rate:.0}")).unwrap_or_default();
    let of_tiles = Isa::Amx.is_available().then(|| rate(Isa::Amx, Dtype::Bf16));
    let of_tiles = of_tiles.map(|rate| format!(", of tiles of bf16 by amx {rate:.0}")).unwrap_or_default();
    format!("{:.0} GFLOP/s a thread of multiply-adds of f32{of_pairs}{of_tiles}", rate(isa, Dtype::F32))
}

/// Which kernels forwards and backwards get on a device, and why.
fn chosen(device: &str) -> Result<String, Error> {
    let args = EngineArgs { device: device.into(), ..EngineArgs::default() };
    let Engine::Cuda(engine) = Engine::of(&args)? else {
        return Ok("On the CPU one engine computes everything, with the instruction set above.\n".into());
    };
    Ok(kernels_of(engine.gpu())?)
}

/// Of q and k, and of v.
const HEAD_DIMS: [[usize; 2]; 6] = [[64, 64], [96, 96], [128, 128], [192, 128], [192, 192], [256, 256]];

/// In words, which kernels calls of a GPU get, and why.
fn kernels_of(gpu: Gpu) -> Result<String, ProblemError> {
    let mut rows = vec![];
    for (dims, dropout_p) in HEAD_DIMS.into_iter().flat_map(|dims| [(dims, 0.0), (dims, 0.1)]) {
        let [head_dim, head_dim_v] = dims;
        let shape = Shape::new(1, 8192, 8192).heads(1, 1).head_dim(head_dim).head_dim_v(head_dim_v);
        let problem = Problem::builder(shape).dropout(Dropout::new(dropout_p, 0, 0)?).build()?;
        let (forward, backward) =
            (ForwardCall::of_dense(&problem, Half::Bf16), BackwardCall::of_dense(&problem, Half::Bf16));
        let forward = ForwardChoice::of(&forward, gpu, Kernels::Best).forward();
        let keys = BackwardChoice::of(&backward, gpu, Kernels::Best).keys();
        for config in [Config::Forward(forward), Config::Keys(keys)] {
            rows.push(format!("{config}\n    {}.\n", config.words()));
        }
    }
    let why = if gpu.is_hopper() {
        "Hopper's own kernels (sf_fwd90, sf_bwd90) compute forwards and backwards. The portable ones \
         (sf_fwd, sf_bwd) take over, and the log says so once for each reason, if a head_dim is no multiple of 8, if \
         tensors are empty, if rows do not all start at multiples of 16 bytes, or if a shard starts inside a block of \
         16 rows (backwards and probs: 32 columns) of the dropout mask; of probs also if seqlen_k is no multiple of 8."
            .to_string()
    } else {
        format!("The portable kernels compute everything: {}.", NotHopper::Gpu(gpu))
    };
    let rest = "`signflash kernels` shows those of other problems, and the other kernels of a backward.";
    Ok(format!(
        "{gpu}\nForwards, and the pass over keys of backwards, of bf16 and 8192 keys:\n{}{why}\n{rest}\n",
        rows.concat()
    ))
}

/// A line for each GPU, and where its kernels are kept; or why there is none.
fn gpus() -> Vec<(&'static str, String)> {
    let all = Device::count().and_then(|count| (0..count).map(Device::open).collect::<Result<Vec<_>, _>>());
    let devices = match all {
        Ok(devices) => devices,
        Err(reason) => return vec![("cuda", reason.to_string())],
    };
    let line = |device: &Device| {
        let info = device.info();
        let ((major, minor), (cuda, update)) = (info.compute_capability, info.driver_version);
        let (memory, sms) = (memory::readable(info.memory_bytes), info.sm_count);
        let text =
            format!("{}, {major}.{minor}, {sms} SMs, {memory}, driver for CUDA {cuda}.{update}", info.name);
        ("cuda", format!("{}: {text}", device.ordinal()))
    };
    let status = ModuleCache::new().status();
    let kept = match (status.directory, status.problem) {
        (Some(directory), None) => directory.display().to_string(),
        (_, problem) => problem.unwrap_or_else(|| "nowhere".into()),
    };
    devices.iter().map(line).chain([("kernels", format!("kept in {kept}"))]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hopper_gpu_s_kernels_are_said_in_words_with_what_they_do_not_take() {
        let said = kernels_of(Gpu::HOPPER).unwrap();
        for expected in [
            "sf_fwd90_bf16_d128_drop_",
            "out and lse by Hopper's own kernel: bf16, head_dim 128, dropout. 2 warpgroups of a block multiply 64 queries",
            "dk, dv and sums of dq by Hopper's own kernel: bf16, head_dim 256. 2 warpgroups of a block share 64 keys",
            "out and lse by Hopper's own kernel: bf16, head_dim 192 and 128 of v. 2 warpgroups of a block multiply",
            "if a head_dim is no multiple of 8",
        ] {
            assert!(said.contains(expected), "{expected}: {said}");
        }
        assert!(!said.contains("portable kernel:"), "{said}");
    }

    #[test]
    fn another_gpu_s_kernels_are_portable_and_it_is_said_why() {
        let said = kernels_of(Gpu::AMPERE).unwrap();
        assert!(said.contains("out and lse by the portable kernel: bf16, head_dim 64."), "{said}");
        let why = "everything: the GPU's compute capability is 8.0, and Hopper's own kernels need 9.0.";
        assert!(said.contains(why), "{said}");
    }
}
