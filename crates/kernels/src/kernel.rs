//! From a configuration to its kernel: the one place that knows all kernels.
use crate::config::{Config, DqKernel, ForwardKernel, KeysKernel};
use crate::{packed, padding, rows, sm80, sm90};
use signflash_ptx::Kernel;

impl Config {
    /// Builds the kernel.
    pub fn kernel(&self) -> Kernel {
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
