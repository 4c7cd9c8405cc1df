//! The kernels that calls can come to, for tables and tests.
use crate::call::{BackwardCall, ForwardCall};
use crate::choose::{BackwardChoice, ForwardChoice, Kernels};
use crate::config::{BandKind, Config, Product, ScoreKind, Stored};
use crate::gpu::Gpu;
use crate::scores::DeviceScoreTensor;
use crate::tensor::{DeviceTensor, Order};
use signflash_core::{Dropout, Dtype, Problem, Shape, Slopes, contiguous_strides};
use signflash_ptx::Half;

/// Padded head_dims of one row of the tables each.
const HEAD_DIMS: [usize; 7] = [32, 64, 80, 96, 128, 192, 256];

/// Of q and k, and of v, where they differ: DeepSeek's first.
const HEAD_DIM_PAIRS: [[usize; 2]; 4] = [[192, 128], [64, 128], [128, 64], [96, 64]];

/// Lengths of keys on both sides of where a table's row ends, and of queries that see a key.
const LENGTHS: [usize; 3] = [256, 2048, 8192];

/// A kind of calls, of which all get the same kernels but for their lengths.
#[derive(Clone, Copy, Debug)]
pub struct Calls {
    /// Of all tensors.
    pub half: Half,
    /// How results are stored; if not rounded, nobody writes probs.
    pub stored: Stored,
    /// Of a head of q and k.
    pub head_dim: usize,
    /// Of a head of v.
    pub head_dim_v: usize,
    /// Which keys a query sees.
    pub band: BandKind,
    /// Whether probabilities are dropped.
    pub dropout: bool,
    /// What becomes of a product of q and k.
    pub kind: ScoreKind,
    /// Whether rows have sinks.
    pub sinks: bool,
    /// The format of a bias, of (1, num_heads, seqlen_q, seqlen_k), if there is one; with its gradient.
    pub bias: Option<Dtype>,
    /// Whether there is a mask, and for each query another, or only of keys.
    pub mask: Option<Masks>,
    /// Whether every row of every tensor starts at a multiple of 16 bytes, as far as head_dim allows.
    pub aligned: bool,
    /// Whether sequences are packed.
    pub packed: bool,
}

/// Which masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masks {
    /// (batch, 1, seqlen_q, seqlen_k).
    OfQueries,
    /// (batch, 1, 1, seqlen_k).
    OfKeys,
}

impl Calls {
    /// Aligned ones of a head_dim, which see all keys, drop nothing, and have nothing but scaled products for scores.
    pub fn of(half: Half, head_dim: usize) -> Self {
        Calls {
            half,
            stored: Stored::Rounded,
            head_dim,
            head_dim_v: head_dim,
            band: BandKind::Full,
            dropout: false,
            kind: ScoreKind::SCALED,
            sinks: false,
            bias: None,
            mask: None,
            aligned: true,
            packed: false,
        }
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
                    let call = call.with_deterministic(deterministic).with_stored([self.stored; 2]);
                    let call = call.with_dsinks(self.sinks.then_some(4));
                    let dbias =
                        self.bias.map(|_| DeviceScoreTensor::of(0, contiguous_strides(bias_shape(seqlen))));
                    let call = call.with_dbias(dbias);
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
        let ScoreKind { product, alibi } = self.kind;
        let scale = if product == Product::Negated { -1.0 } else { 1.0 };
        let problem = Problem::builder(shape).dropout(dropout).softmax_scale(scale);
        let problem = problem.softcap((product == Product::Capped).then_some(30.0));
        let problem = problem.alibi(alibi.then_some(Slopes::PerHead)).sinks(self.sinks);
        let problem = match band {
            BandKind::Full => problem,
            BandKind::Right => problem.causal(true),
            BandKind::Both => problem.window(Some(seqlen / 4), Some(0)),
        };
        let problem = if self.packed { problem.packed_on_device(1) } else { problem };
        let problem = match self.bias {
            Some(dtype) => problem.bias(dtype, bias_shape(seqlen)),
            None => problem,
        };
        let problem = match self.mask {
            Some(Masks::OfQueries) => problem.mask([1, 1, seqlen, seqlen]),
            Some(Masks::OfKeys) => problem.mask([1, 1, 1, seqlen]),
            None => problem,
        };
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
        call.with_stored(self.stored).with_probs((!self.stored.is_wide()).then_some(probs))
    }
}

fn bias_shape(seqlen: usize) -> [usize; 4] {
    [1, 1, seqlen, seqlen]
}

/// Every kernel of a GPU's tables for whole rows of 16 bytes, each head_dim, each kind of band, with dropout and without;
/// and for head_dim 128 those that move single elements, and those of a negative scale; of packed sequences some; and of
/// a head_dim of v that is not q's some; with f32 results some.
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
        let negated = ScoreKind { product: Product::Negated, ..ScoreKind::SCALED };
        all.push(Calls { kind: negated, ..drops });
    }
    // Where packed sequences lie, all of them ask in the same way.
    all.extend(
        [64, 128, 256].map(|head_dim| Calls { packed: true, ..of(head_dim, (BandKind::Right, true)) }),
    );
    let bands = [(BandKind::Full, false), (BandKind::Both, false), (BandKind::Both, true)];
    all.extend(bands.map(|flags| Calls { packed: true, ..of(128, flags) }));
    for [head_dim, head_dim_v] in HEAD_DIM_PAIRS {
        let of_pair = |flags| Calls { head_dim_v, ..of(head_dim, flags) };
        all.extend([(BandKind::Full, false), (BandKind::Right, true), (BandKind::Both, true)].map(of_pair));
    }
    for stored in [Stored::Wide, Stored::Added] {
        all.extend([64, 128, 256].map(|head_dim| Calls { stored, ..of(head_dim, (BandKind::Right, true)) }));
    }
    all.extend(of_scores(half));
    let mut kernels: Vec<Config> = vec![];
    for config in all.into_iter().flat_map(|calls| calls.kernels(gpu)) {
        if !kernels.contains(&config) {
            kernels.push(config);
        }
    }
    kernels
}

/// Calls with a bias that the copy engine brings and with one that it does not, and with masks of both kinds.
fn of_tensors(half: Half, head_dim: usize) -> Vec<Calls> {
    use BandKind::{Full, Right};
    let of = |band, dropout| Calls { band, dropout, ..Calls::of(half, head_dim) };
    let boxed = if half == Half::Bf16 { Dtype::Bf16 } else { Dtype::F16 };
    let mut all = vec![
        Calls { bias: Some(boxed), ..of(Full, false) },
        Calls { bias: Some(boxed), ..of(Right, true) },
        Calls { mask: Some(Masks::OfKeys), ..of(Full, false) },
        Calls { mask: Some(Masks::OfKeys), ..of(Right, true) },
    ];
    if head_dim == 128 {
        all.extend([
            Calls { bias: Some(Dtype::F32), ..of(Right, true) },
            Calls { mask: Some(Masks::OfQueries), ..of(Right, true) },
        ]);
    }
    all
}

/// Calls of the other kinds of scores: those of each head_dim that has kernels of its own form, each kind with dropout and
/// without, and each with each band.
fn of_scores(half: Half) -> Vec<Calls> {
    use BandKind::{Both, Full, Right};
    let kind = |product, alibi| ScoreKind { product, alibi };
    let kinds = [
        (kind(Product::Capped, false), [(Full, false), (Right, true), (Both, false)]),
        (kind(Product::Scaled, true), [(Full, true), (Right, false), (Both, true)]),
        (kind(Product::Capped, true), [(Full, false), (Right, true), (Both, true)]),
    ];
    let of_head_dim = |head_dim| {
        kinds.into_iter().enumerate().flat_map(move |(number, (kind, settings))| {
            settings.into_iter().map(move |(band, dropout)| Calls {
                band,
                dropout,
                kind,
                sinks: number == 0 && band == Right,
                packed: number == 2 && band == Right,
                ..Calls::of(half, head_dim)
            })
        })
    };
    let mut all: Vec<Calls> = [64, 128, 256].into_iter().flat_map(of_head_dim).collect();
    all.extend([64, 128].map(|head_dim| Calls { sinks: true, ..Calls::of(half, head_dim) }));
    all.extend([64, 128, 256].into_iter().flat_map(|head_dim| of_tensors(half, head_dim)));
    all
}
