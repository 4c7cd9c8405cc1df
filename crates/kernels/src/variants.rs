//! The kernels that calls can come to, for tables and tests.
use crate::call::{BackwardCall, ForwardCall};
use crate::choose::{BackwardChoice, ForwardChoice, Kernels};
use crate::config::{BandKind, Config};
use crate::gpu::Gpu;
use crate::tensor::{DeviceTensor, Order};
use signflash_core::{Dropout, Problem, Shape};
use signflash_ptx::Half;

/// Padded head_dims of one row of the tables each.
const HEAD_DIMS: [usize; 7] = [32, 64, 80, 96, 128, 192, 256];

/// Of q and k, and of v, where they differ: DeepSeek's first.
const HEAD_DIM_PAIRS: [[usize; 2]; 4] = [[192, 128], [64, 128], [128, 64], [96, 64]];

/// Lengths of keys on both sides of where a table's row ends.
const LENGTHS: [usize; 2] = [1024, 8192];

/// A kind of calls, of which all get the same kernels but for their lengths.
#[derive(Clone, Copy, Debug)]
pub struct Calls {
    /// Of all tensors.
    pub half: Half,
    /// Of a head of q and k.
    pub head_dim: usize,
    /// Of a head of v.
    pub head_dim_v: usize,
    /// Which keys a query sees.
    pub band: BandKind,
    /// Whether probabilities are dropped.
    pub dropout: bool,
    /// Whether softmax_scale is negative.
    pub negative_scale: bool,
    /// Whether every row of every tensor starts at a multiple of 16 bytes, as far as head_dim allows.
    pub aligned: bool,
    /// Whether sequences are packed.
    pub packed: bool,
}

impl Calls {
    /// Aligned ones of a head_dim, which see all keys and drop nothing.
    pub fn of(half: Half, head_dim: usize) -> Self {
        let (band, dropout, negative_scale, aligned, packed) = (BandKind::Full, false, false, true, false);
        Calls { half, head_dim, head_dim_v: head_dim, band, dropout, negative_scale, aligned, packed }
    }

    /// Every kernel that these calls come to on a GPU: of any length, deterministic or not, with probs, with Hopper's
    /// own kernels or without. A kernel may come more than once.
    pub fn kernels(&self, gpu: Gpu) -> Vec<Config> {
        let mut all = vec![];
        for seqlen in LENGTHS {
            let problem = self.problem(seqlen);
            let forward = self.forward(&problem);
            for kernels in [Kernels::Best, Kernels::Portable] {
                all.extend(ForwardChoice::of(&forward, gpu, kernels).kernels());
                for deterministic in [false, true] {
                    let gradients = [forward.q, forward.k, forward.v];
                    let call = BackwardCall::of(&forward, forward.out, gradients, 0);
                    let call = call.with_deterministic(deterministic);
                    all.extend(BackwardChoice::of(&call, gpu, kernels).kernels());
                }
            }
        }
        all
    }

    fn problem(&self, seqlen: usize) -> Problem {
        let Calls { head_dim, head_dim_v, band, .. } = *self;
        let (batch, num_heads) = (1, 1);
        let shape = Shape::new(batch, seqlen, seqlen).heads(num_heads, num_heads);
        let shape = shape.head_dim(head_dim).head_dim_v(head_dim_v);
        let dropout_p = if self.dropout { 0.1 } else { 0.0 };
        let dropout = Dropout::new(dropout_p, 1, 0).expect("a probability");
        let scale = if self.negative_scale { -1.0 } else { 1.0 };
        let problem = Problem::builder(shape).dropout(dropout).softmax_scale(scale);
        let problem = match band {
            BandKind::Full => problem,
            BandKind::Right => problem.causal(true),
            BandKind::Both => problem.window(Some(seqlen / 4), Some(0)),
        };
        let problem = if self.packed { problem.packed_on_device(1) } else { problem };
        problem.build().expect("small sizes, and a finite scale")
    }

    fn forward<'a>(&self, problem: &'a Problem) -> ForwardCall<'a> {
        // An address that is no multiple of 16, or one that is.
        let ptr = if self.aligned { 0 } else { 2 };
        let shape = problem.shape();
        let tensor = |sizes| DeviceTensor::dense(ptr, sizes, Order::RowsFirst);
        let inputs = [shape.q(), shape.k(), shape.v()].map(tensor);
        let probs = DeviceTensor::dense(ptr, shape.probs(), Order::HeadsFirst);
        let call = ForwardCall::new(problem, self.half, inputs, tensor(shape.out()), 0);
        call.with_probs(Some(probs))
    }
}

/// Every kernel of a GPU's tables for whole rows of 16 bytes, each head_dim, each kind of band, with dropout and without;
/// and for head_dim 128 those that move single elements, and those of a negative scale; of packed sequences some; and of
/// a head_dim of v that is not q's some.
///
/// ```
/// use signflash_kernels::{Gpu, variants};
/// use signflash_ptx::Half;
/// let all = variants(Gpu::HOPPER, Half::Bf16);
/// assert!(all.iter().any(|config| config.to_string().starts_with("sf_fwd90_bf16_d128_causal_drop_")));
/// assert!(all.iter().any(|config| config.to_string().starts_with("sf_fwd_bf16_d128_causal_drop_")));
/// ```
pub fn variants(gpu: Gpu, half: Half) -> Vec<Config> {
    let bands = [BandKind::Full, BandKind::Right, BandKind::Both];
    let flags = bands.map(|band| [(band, false), (band, true)]);
    let of = |head_dim, (band, dropout)| Calls { band, dropout, ..Calls::of(half, head_dim) };
    let mut all: Vec<Calls> = HEAD_DIMS
        .into_iter()
        .flat_map(|head_dim| flags.iter().flatten().map(move |flags| of(head_dim, *flags)))
        .collect();
    for band in [BandKind::Right, BandKind::Both] {
        let drops = of(128, (band, true));
        all.push(Calls { head_dim: 120, head_dim_v: 120, ..drops });
        all.push(Calls { aligned: false, ..drops });
        all.push(Calls { negative_scale: true, ..drops });
    }
    // Where packed sequences lie, all of them ask in the same way.
    all.extend(
        [64, 128, 256].map(|head_dim| Calls { packed: true, ..of(head_dim, (BandKind::Right, true)) }),
    );
    all.extend([BandKind::Full, BandKind::Both].map(|band| Calls { packed: true, ..of(128, (band, false)) }));
    for [head_dim, head_dim_v] in HEAD_DIM_PAIRS {
        let of_pair = |flags| Calls { head_dim_v, ..of(head_dim, flags) };
        all.extend([(BandKind::Full, false), (BandKind::Right, true), (BandKind::Both, true)].map(of_pair));
    }
    let mut kernels: Vec<Config> = vec![];
    for config in all.into_iter().flat_map(|calls| calls.kernels(gpu)) {
        if !kernels.contains(&config) {
            kernels.push(config);
        }
    }
    kernels
}
