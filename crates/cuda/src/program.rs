//! What is handed over to be run.

use signflash_kernels::{Kernel, Target};

/// A kernel as PTX, what it takes, and how it is launched.
///
/// Of a built kernel all that is known, `Program::from(&kernel)`. A text that was written by hand has nobody but its
/// writer to say it.
///
/// ```
/// use signflash_cuda::Program;
/// let text = ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry nothing() { ret; }\n";
/// let program =
///     Program { entry: "nothing".into(), ptx: text.into(), block_threads: 128, ..Program::default() };
/// assert!(program.parameter_bytes.is_empty() && !program.is_accelerated);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Program {
    /// The name after `.entry`.
    pub entry: String,
    /// The text of the whole module.
    pub ptx: String,
    /// Bytes of each parameter that it declares: what arguments of a launch are held against.
    pub parameter_bytes: Vec<usize>,
    /// Whether its target is one architecture with features of its own: `sm_90a`.
    pub is_accelerated: bool,
    /// Threads of a block, in one dimension.
    pub block_threads: u32,
    /// Shared memory of a block beyond what the PTX declares with a size.
    pub dynamic_smem_bytes: u32,
}

impl From<&Kernel> for Program {
    fn from(kernel: &Kernel) -> Self {
        Self {
            entry: kernel.name().into(),
            ptx: kernel.ptx(),
            parameter_bytes: kernel.params().iter().map(|param| param.bytes()).collect(),
            is_accelerated: kernel.needs().target == Target::Sm90a,
            block_threads: kernel.block_threads(),
            dynamic_smem_bytes: kernel.smem_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use signflash_kernels::{Gpu, Half, variants};

    /// As many of a kind of declarations as the text has.
    fn declared(ptx: &str, what: &str) -> usize {
        let head = ptx.split_once(".entry").unwrap().1.split_once(')').unwrap().0;
        head.matches(what).count()
    }

    #[test]
    fn a_kernel_s_program_says_what_its_text_declares() {
        let mut accelerated = 0;
        for config in
            variants(Gpu::HOPPER, Half::Bf16).iter().filter(|config| config.to_string().contains("_d128_"))
        {
            let program = Program::from(&config.kernel());
            let of = |bytes: usize| program.parameter_bytes.iter().filter(|of| **of == bytes).count();
            let ptx = &program.ptx;
            assert_eq!(of(8), declared(ptx, ".param .u64 "), "{config}");
            assert_eq!(of(4), declared(ptx, ".param .u32 ") + declared(ptx, ".param .f32 "), "{config}");
            assert_eq!(of(128), declared(ptx, "[128]"), "{config}");
            assert_eq!(program.parameter_bytes.len(), declared(ptx, ".param "), "{config}");
            assert_eq!(program.is_accelerated, ptx.contains(".target sm_90a"), "{config}");
            accelerated += usize::from(program.is_accelerated);
        }
        assert!(accelerated > 0, "kernels of Hopper's own are among them");
    }
}
