//! `signflash kernels`: which kernels a GPU gets for a problem. No GPU is needed to ask.

use crate::cli::{GpuKind, KernelPass, KernelsArgs};
use crate::errors::Error;
use crate::table::table;
use signflash_core::{Dropout, Problem, Shape};
use signflash_kernels::{Config, Gpu, Select, half_of};
use std::io::Write;

/// Prints the table, or one kernel.
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
    let mut rows = vec![];
    for &head_dim in &args.head_dim {
        let shape = Shape::new(1, 1, 1).heads(1, 1).head_dim(head_dim);
        let dropout = Dropout::new(args.dropout_p, 0, 0)?;
        let problem = Problem::builder(shape).causal(args.causal).dropout(dropout).build()?;
        let select = Select { gpu, aligned: true };
        let common = select.common(&problem, half);
        let (adding, ordered) = (select.backward(common, false), select.backward(common, true));
        // The pass over keys, and dq from its sums.
        let own = |deterministic, which| select.hopper_backward(common, deterministic).get(which).copied();
        let kernels = [
            (KernelPass::Forward, select.forward(common, usize::MAX)),
            (KernelPass::PortableForward, select.portable_forward(common)),
            (KernelPass::Probs, select.probs(common)),
            (KernelPass::Delta, adding.delta),
            (KernelPass::Keys, own(false, 0).unwrap_or(adding.keys)),
            (KernelPass::KeysDeterministic, own(true, 0).unwrap_or(ordered.keys)),
            (KernelPass::ConvertDq, own(false, 1).unwrap_or(adding.dq)),
            (KernelPass::PortableKeys, adding.keys),
            (KernelPass::PortableConvertDq, adding.dq),
            (KernelPass::PortableKeysDeterministic, ordered.keys),
            (KernelPass::PortableQueries, ordered.dq),
        ];
        if let Some(pass) = args.ptx {
            let (_, config) = kernels.iter().find(|(of, _)| *of == pass).expect("every pass has a kernel");
            return write!(stdout, "{}", config.kernel().ptx()).map_err(Error::Stdout);
        }
        rows.extend(kernels.map(|(pass, config)| cells(head_dim, pass, &config)));
    }
    let header = ["head_dim", "pass", "kernel", "threads", "smem bytes", "PTX", "target"];
    writeln!(stdout, "{gpu}\n{}", table(&header, rows, 3)).map_err(Error::Stdout)
}

fn cells(head_dim: usize, pass: KernelPass, config: &Config) -> Vec<String> {
    let kernel = config.kernel();
    let needs = kernel.needs();
    vec![
        head_dim.to_string(),
        pass.name().to_string(),
        config.to_string(),
        kernel.block_threads().to_string(),
        kernel.smem_bytes().to_string(),
        format!("{}.{}", needs.ptx.0, needs.ptx.1),
        needs.target.to_string(),
    ]
}
