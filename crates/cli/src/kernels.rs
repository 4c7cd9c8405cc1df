//! `signflash kernels`: which kernels a GPU gets for a problem. No GPU is needed to ask.

use crate::args::{GpuKind, KernelPass, KernelsArgs};
use crate::errors::Error;
use crate::table::table;
use signflash_core::{Dropout, Problem, Shape};
use signflash_kernels::{
    BackwardCall, BackwardChoice, Config, DeviceTensor, ForwardCall, ForwardChoice, Gpu, Half, Kernels,
    Order, half_of,
};
use std::io::Write;

/// Prints the table, and each kernel in words; or one kernel.
///
/// # Errors
/// [`Error::Problem`], [`Error::Argument`], [`Error::Stdout`].
pub fn run(args: &KernelsArgs, stdout: &mut dyn Write) -> Result<(), Error> {
    let half = half_of(args.dtype).ok_or_else(|| Error::Argument {
        argument: "--dtype",
        expected: "f16 or bf16: the GPU's kernels are of 16-bit formats".into(),
        got: args.dtype.to_string(),
    })?;
    let gpu = match args.gpu {
        GpuKind::Hopper => Gpu::HOPPER,
        GpuKind::Ampere => Gpu::AMPERE,
        GpuKind::Small => Gpu::SMALL,
    };
    let (mut rows, mut words) = (vec![], String::new());
    for &head_dim in &args.head_dim {
        // As many keys as there may be: for fewer, causal forwards of a small head_dim have another form.
        let shape = Shape::new(1, 8192, 8192).heads(1, 1).head_dim(head_dim);
        let shape = args.head_dim_v.map_or(shape, |head_dim_v| shape.head_dim_v(head_dim_v));
        let dropout = Dropout::new(args.dropout_p, 0, 0)?;
        let problem = Problem::builder(shape).causal(args.causal).dropout(dropout);
        let problem = problem.window(args.window.left, args.window.right);
        let problem = if args.packed { problem.packed_on_device(1) } else { problem }.build()?;
        let kernels = kernels(&problem, half, gpu);
        if let Some(pass) = args.ptx {
            let (_, config) = kernels.iter().find(|(of, _)| *of == pass).ok_or_else(|| Error::Argument {
                argument: "--ptx",
                expected: "a pass of the table; add --packed for the one that lists tiles".into(),
                got: pass.name().into(),
            })?;
            return write!(stdout, "{}", config.kernel().ptx()).map_err(Error::Stdout);
        }
        let dims = args.head_dim_v.map_or(head_dim.to_string(), |of_v| format!("{head_dim}, {of_v} of v"));
        rows.extend(kernels.iter().map(|(pass, config)| cells(&dims, *pass, config)));
        words += &in_words(&dims, &problem, half, gpu, &kernels);
    }
    let header = ["head_dim", "pass", "kernel", "threads", "smem bytes", "PTX", "target"];
    writeln!(stdout, "{gpu}\n{}\n{words}", table(&header, rows, 3)).map_err(Error::Stdout)
}

/// Every pass of a problem with dense tensors, and its kernel.
fn kernels(problem: &Problem, half: Half, gpu: Gpu) -> Vec<(KernelPass, Config)> {
    let probs = DeviceTensor::dense(0, problem.shape().probs(), Order::HeadsFirst);
    let forward = ForwardCall::of_dense(problem, half).with_probs(Some(probs));
    let adding = BackwardCall::of_dense(problem, half);
    let ordered = adding.with_deterministic(true);
    let of_forward = |kernels| ForwardChoice::of(&forward, gpu, kernels);
    let own = of_forward(Kernels::Best);
    let [best, best_ordered] = [&adding, &ordered].map(|call| BackwardChoice::of(call, gpu, Kernels::Best));
    let [portable, portable_ordered] =
        [&adding, &ordered].map(|call| BackwardChoice::of(call, gpu, Kernels::Portable));
    let of_packed = problem.is_packed().then_some((KernelPass::Tiles, Config::Tiles));
    let of_all = [
        (KernelPass::Forward, Config::Forward(own.forward())),
        (KernelPass::PortableForward, Config::Forward(of_forward(Kernels::Portable).forward())),
        (KernelPass::Probs, Config::Probs(own.probs().expect("they are asked for"))),
        (KernelPass::Delta, best.delta()),
        (KernelPass::Keys, Config::Keys(best.keys())),
        (KernelPass::KeysDeterministic, Config::Keys(best_ordered.keys())),
        (KernelPass::ConvertDq, Config::Dq(best.dq())),
        (KernelPass::PortableKeys, Config::Keys(portable.keys())),
        (KernelPass::PortableConvertDq, Config::Dq(portable.dq())),
        (KernelPass::PortableKeysDeterministic, Config::Keys(portable_ordered.keys())),
        (KernelPass::PortableQueries, Config::Dq(portable_ordered.dq())),
    ];
    of_packed.into_iter().chain(of_all).collect()
}

/// The kernels in words, and why they are not Hopper's own where they could be.
fn in_words(dims: &str, problem: &Problem, half: Half, gpu: Gpu, kernels: &[(KernelPass, Config)]) -> String {
    let line = |(pass, config): &(KernelPass, Config)| format!("  {}: {}.\n", pass.name(), config.words());
    let lines: String = kernels.iter().map(line).collect();
    let call = ForwardCall::of_dense(problem, half);
    let choice = ForwardChoice::of(&call, gpu, Kernels::Best);
    let why = choice
        .not_hopper()
        .map_or(String::new(), |reason| format!("  The portable kernels compute everything: {reason}.\n"));
    format!("head_dim {dims}\n{lines}{why}")
}

fn cells(dims: &str, pass: KernelPass, config: &Config) -> Vec<String> {
    let kernel = config.kernel();
    let needs = kernel.needs();
    vec![
        dims.to_string(),
        pass.name().to_string(),
        config.to_string(),
        kernel.block_threads().to_string(),
        kernel.smem_bytes().to_string(),
        format!("{}.{}", needs.ptx.0, needs.ptx.1),
        needs.target.to_string(),
    ]
}
