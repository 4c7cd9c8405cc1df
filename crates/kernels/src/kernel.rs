//! From a configuration to its kernel: the one place that knows all kernels.
use crate::config::Config;
use crate::{sm80, sm90};
use signflash_ptx::Kernel;

impl Config {
    /// Builds the kernel.
    pub fn kernel(&self) -> Kernel {
        let name = self.to_string();
        match self {
            Config::Forward(common, form) => sm80::forward::kernel(&name, common, form),
            Config::HopperForward(common, form) => sm90::forward::kernel(&name, common, form),
            Config::Probs(common, form) => sm80::probs::kernel(&name, common, form),
            Config::HopperProbs(common, form) => sm90::probs::kernel(&name, common, form),
            Config::Delta(half, rows) => sm80::delta::kernel(&name, *half, *rows),
            Config::Keys(common, form, sums) => sm80::backward_keys::kernel(&name, common, form, *sums),
            Config::HopperKeys(common, form) => sm90::backward::kernel(&name, common, form),
            Config::Queries(common, form) => sm80::backward_queries::kernel(&name, common, form),
            Config::ConvertDq(rows, step, sums) => sm80::convert_dq::kernel(&name, rows, *step, *sums),
        }
    }
}
