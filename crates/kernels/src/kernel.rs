//! From a configuration to its kernel: the one place that knows all kernels.
use crate::config::{Common, Config, DbiasKernel, DqKernel, ForwardKernel, KeysKernel};
use crate::gpu::Gpu;
use crate::tables::portable::SmemBytes;
use crate::{packed, padding, rows, sm80, sm90};
use signflash_ptx::Kernel;
use std::ops::RangeInclusive;

impl Config {
    /// Builds the kernel.
    pub fn kernel(&self) -> Kernel {
        let kernel = self.built();
        if let Some(planned) = self.planned_smem_bytes() {
            let asked = kernel.smem_bytes();
            debug_assert!(
                planned.contains(&asked),
                "{self} asks for {asked} bytes, where {planned:?} are planned"
            );
        }
        kernel
    }

    /// How much shared memory the tables count on when they choose the kernel, where they do.
    fn planned_smem_bytes(&self) -> Option<RangeInclusive<u32>> {
        let portable =
            |smem_bytes: SmemBytes, common: &Common, form| Some(0..=smem_bytes(common.operands.dims(), form));
        match self {
            Config::Forward(ForwardKernel::Portable(common, form)) => {
                portable(sm80::forward::smem_bytes, common, form)
            }
            // No less, either: how many stages there are room for depends on it.
            Config::Forward(ForwardKernel::Hopper(common, form)) => {
                let planned = form.smem_bytes(common);
                Some(planned.saturating_sub(2047)..=planned)
            }
            Config::Probs(ForwardKernel::Portable(common, form)) => {
                portable(sm80::probs::smem_bytes, common, form)
            }
            Config::Keys(KeysKernel::Portable(common, form, _)) => {
                portable(sm80::backward_keys::smem_bytes, common, form)
            }
            Config::Keys(KeysKernel::Hopper(..)) => Some(0..=Gpu::HOPPER.smem_per_block_bytes),
            Config::Dq(DqKernel::Queries(common, form)) => {
                portable(sm80::backward_queries::smem_bytes, common, form)
            }
            Config::Dbias(DbiasKernel { common, form, .. }) => {
                portable(sm80::dbias::smem_bytes, common, form)
            }
            _ => None,
        }
    }

    fn built(&self) -> Kernel {
        let name = &self.to_string();
        match self {
            Config::Forward(ForwardKernel::Portable(common, form)) => {
                sm80::forward::kernel(name, common, form)
            }
            Config::Forward(ForwardKernel::Hopper(common, form)) => sm90::forward::kernel(name, common, form),
            Config::Probs(ForwardKernel::Portable(common, form)) => sm80::probs::kernel(name, common, form),
            Config::Probs(ForwardKernel::Hopper(common, form)) => sm90::probs::kernel(name, common, form),
            Config::Delta(half, layout, rows) => rows::delta::kernel(name, (*half, *layout), *rows),
            Config::Keys(KeysKernel::Portable(common, form, sums)) => {
                sm80::backward_keys::kernel(name, common, form, *sums)
            }
            Config::Keys(KeysKernel::Hopper(common, form)) => sm90::backward::kernel(name, common, form),
            Config::Dq(DqKernel::Queries(common, form)) => sm80::backward_queries::kernel(name, common, form),
            Config::Dq(DqKernel::FromSums(rows, step, sums)) => {
                rows::convert_dq::kernel(name, rows, *step, *sums)
            }
            Config::Dbias(kernel) => sm80::dbias::kernel(name, kernel),
            Config::OwnDbias(common) => sm90::dbias::kernel(name, common),
            Config::Dsinks => rows::dsinks::kernel(name),
            Config::Tiles => packed::list::kernel(name),
            Config::Padding => padding::kernel(name),
        }
    }
}
