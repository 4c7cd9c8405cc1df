//! The kernels that calls can come to, for tables and tests.
use crate::config::{Access, Common, Config, Operands, Scores};
use crate::select::{Gpu, Select};
use signflash_ptx::Half;

/// Padded head_dims of one row of the tables each.
const HEAD_DIMS: [u32; 7] = [32, 64, 80, 96, 128, 192, 256];

/// Every kernel of a GPU's tables for whole rows of 16 bytes, each head_dim, causal and not, with dropout and without;
/// and for head_dim 128 those that move single elements, and those of a negative scale.
///
/// ```
/// use signflash_kernels::{Gpu, variants};
/// use signflash_ptx::Half;
/// let all = variants(Gpu::HOPPER, Half::Bf16);
/// assert!(all.iter().any(|config| config.to_string().starts_with("sf_fwd90_bf16_d128_causal_drop_")));
/// assert!(all.iter().any(|config| config.to_string().starts_with("sf_fwd_bf16_d128_causal_drop_")));
/// ```
pub fn variants(gpu: Gpu, half: Half) -> Vec<Config> {
    let flags = [(false, false), (false, true), (true, false), (true, true)];
    let plain = |head_dim, (causal, dropout)| Common {
        operands: Operands { half, head_dim },
        access: Access::Whole,
        scores: Scores { causal, dropout, negative_scale: false },
    };
    let mut all: Vec<Common> =
        HEAD_DIMS.into_iter().flat_map(|head_dim| flags.map(|flags| plain(head_dim, flags))).collect();
    let both = plain(128, (true, true));
    all.push(Common { access: Access::Pieces, ..both });
    all.push(Common { access: Access::Elements, ..both });
    all.push(Common { scores: Scores { negative_scale: true, ..both.scores }, ..both });
    let mut kernels: Vec<Config> = vec![];
    for config in all.into_iter().flat_map(|common| kernels_of(gpu, common)) {
        if !kernels.contains(&config) {
            kernels.push(config);
        }
    }
    kernels
}

/// Every kernel that calls come to which have this in common: of any length, deterministic or not, with Hopper's own kernels
/// or without. A kernel may come more than once.
pub fn kernels_of(gpu: Gpu, common: Common) -> Vec<Config> {
    let select = Select { gpu, aligned: common.access != Access::Elements };
    let (adding, ordered) = (select.backward(common, false), select.backward(common, true));
    let of_one = [
        select.forward(common, 1024),
        select.forward(common, usize::MAX),
        select.portable_forward(common),
        select.probs(common),
        select.portable_probs(common),
        adding.delta,
        adding.keys,
        adding.dq,
        ordered.keys,
        ordered.dq,
    ];
    let hopper = [false, true].map(|deterministic| select.hopper_backward(common, deterministic));
    of_one.into_iter().chain(hopper.into_iter().flatten()).collect()
}
