//! What kernels depend on besides the form of their blocks, in the parts that they share.
//!
//! A kernel's configuration holds the parts that it reads and no other, and its name is made of them: so a new kind
//! of score multiplies the kernels that make scores, and no kernel is compiled twice.
use super::Overlays;
use signflash_core::{Problem, Shape, Window};
use signflash_ptx::Half;

/// How the sequences of a problem lie in its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Each in its own place of a batch, and all equally long.
    Batch,
    /// One behind the other; how long they are is read on the GPU.
    Packed,
}

/// What all kernels of a problem are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operands {
    /// Format of q, k, v and, unless they are wide, of the results.
    pub half: Half,
    /// How out, dq, dk and dv are stored.
    pub stored: Stored,
    /// Columns of q and k a head in shared memory: head_dim, rounded up to a multiple of 16.
    pub head_dim: u32,
    /// Likewise of v and out, if v has a head_dim of its own, whether that is rounded up to the same or not.
    pub head_dim_v: Option<u32>,
    /// Where rows of a sequence are.
    pub layout: Layout,
}

/// How out, dq, dk and dv are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Stored {
    /// Rounded to the operands' format.
    #[default]
    Rounded,
    /// In f32: parts of results, that are rounded when they have been added up.
    Wide,
    /// In f32, and added to what is there: gradients as they are; out by its lse to that of other keys, whose lse is there
    /// as well.
    Added,
}

/// Columns a head, real or in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HeadDims {
    /// Of q, k and their gradients.
    pub(crate) q: u32,
    /// Of v, out and theirs.
    pub(crate) v: u32,
}

/// How portable kernels move rows of 16-bit numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// As [`Pieces`](Self::Pieces), and every head_dim is what it is in shared memory: no column needs a check.
    Whole,
    /// 16 bytes at a time, asynchronously: every row starts at a multiple of 16 bytes, every head_dim is a multiple of 8.
    Pieces,
    /// Element by element: any row.
    Elements,
}

/// From which sides keys are hidden from a query: kernels are told where, but are built for how many sides there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BandKind {
    /// A query sees all keys.
    Full,
    /// Keys behind a diagonal are hidden: causal attention, or any other right side of a window.
    Right,
    /// Keys before a diagonal are hidden, and keys behind another: a window. If it has no right side, the other
    /// diagonal is far away.
    Both,
}

/// What becomes of a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scores {
    /// Which keys a query sees.
    pub band: BandKind,
    /// Whether probabilities are dropped.
    pub dropout: bool,
    /// What products become.
    pub kind: ScoreKind,
    /// What is added to them.
    pub overlays: Overlays,
    /// Whether each row has one more score, a sink. Only the forward is told: others know it by lse.
    pub sinks: bool,
}

/// What becomes of a product of a query and a key before it is weighed, but for a bias and a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScoreKind {
    /// What it becomes by itself.
    pub product: Product,
    /// Whether a slope times the distance from the diagonal is taken from it then.
    pub alibi: bool,
}

/// What becomes of a product by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Product {
    /// It is scaled. If something is added then, softmax_scale may have either sign.
    Scaled,
    /// It changes its sign, and is scaled: softmax_scale is negative.
    Negated,
    /// It is scaled, and bent by a softcap.
    Capped,
}

/// What moving rows of one width depends on, which is their operands' `head_dim`: work that makes no scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct RowsCommon {
    pub operands: Operands,
    pub access: Access,
}

/// How the kernel of statistics reads rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeltaRows {
    /// In pieces of 16 bytes, each by a lane: so many lanes share a row, a power of two.
    Wide {
        /// How many.
        lanes: u32,
    },
    /// Element by element, a row by a warp.
    Narrow {
        /// How many a lane has.
        columns: u32,
    },
}

/// What the portable kernels that make scores have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Common {
    pub operands: Operands,
    pub access: Access,
    pub scores: Scores,
}

/// What Hopper's own kernels have in common: rows come in boxes of 64 columns, and the copy engine knows how long
/// they are and where they lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct HopperCommon {
    pub operands: Operands,
    pub scores: Scores,
}

/// Whether, and how, a pass over keys adds up dq in global memory, in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DqSums {
    /// It leaves dq to a pass over queries.
    None,
    /// One float at a time.
    Narrow,
    /// Four floats at a time (Hopper).
    Wide,
}

impl Layout {
    /// Of a problem.
    pub fn of(problem: &Problem) -> Self {
        if problem.is_packed() { Layout::Packed } else { Layout::Batch }
    }

    /// Whether sequences lie one behind the other.
    pub fn is_packed(self) -> bool {
        self == Layout::Packed
    }
}

impl Stored {
    /// Whether results are f32.
    pub fn is_wide(self) -> bool {
        self != Stored::Rounded
    }
}

impl BandKind {
    /// Of the sides of a window that hide something: [`Problem::sides`](signflash_core::Problem::sides).
    pub fn of(sides: Window) -> Self {
        match (sides.left, sides.right) {
            (None, None) => BandKind::Full,
            (None, Some(_)) => BandKind::Right,
            (Some(_), _) => BandKind::Both,
        }
    }
}

impl Scores {
    /// The same for kernels whose accumulators' rows are keys.
    pub(crate) fn by_keys(self) -> Self {
        Scores { overlays: self.overlays.by_keys(), ..self }
    }

    /// Whether something is added to scores.
    pub(crate) fn adds(&self) -> bool {
        self.kind.alibi || self.overlays.bias.is_some()
    }
}

impl Operands {
    /// All columns.
    pub(crate) fn dims(&self) -> HeadDims {
        HeadDims { q: self.head_dim, v: self.head_dim_v.unwrap_or(self.head_dim) }
    }

    /// The same where nobody reads v.
    pub(crate) fn without_v(self) -> Self {
        Operands { head_dim_v: None, ..self }
    }

    /// Of what makes dq of its sums, where it is stored so: f32 is the same for both formats.
    pub(crate) fn of_sums(self, stored: Stored) -> Self {
        let half = if stored.is_wide() { Half::Bf16 } else { self.half };
        Operands { half, stored, ..self }
    }
}

impl HeadDims {
    /// As the tensors of a problem have them.
    pub(crate) fn of(problem: &Problem) -> Self {
        let Shape { head_dim, head_dim_v, .. } = *problem.shape();
        HeadDims { q: head_dim as u32, v: head_dim_v as u32 }
    }

    /// The larger.
    pub(crate) fn max(self) -> u32 {
        self.q.max(self.v)
    }

    /// Both.
    pub(crate) fn sum(self) -> u32 {
        self.q + self.v
    }

    /// Each changed alike.
    pub(crate) fn map<T>(self, change: impl Fn(u32) -> T) -> [T; 2] {
        [change(self.q), change(self.v)]
    }
}

impl ScoreKind {
    /// Whether products are bent.
    pub(crate) fn is_capped(self) -> bool {
        self.product == Product::Capped
    }

    /// Of products that are scaled, and nothing else.
    pub const SCALED: Self = ScoreKind { product: Product::Scaled, alibi: false };

    /// Of a problem.
    pub fn of(problem: &Problem) -> Self {
        let alibi = problem.alibi().is_some();
        let adds = alibi || problem.bias().is_some();
        let product = match (problem.softcap(), problem.negates() && !adds) {
            (Some(_), _) => Product::Capped,
            (None, true) => Product::Negated,
            (None, false) => Product::Scaled,
        };
        ScoreKind { product, alibi }
    }
}

impl Common {
    /// The same for a kernel that reads lse.
    pub fn with_lse(self) -> Self {
        Common { scores: Scores { sinks: false, ..self.scores }, ..self }
    }

    /// Of these, what moving rows of q and k depends on.
    pub fn rows(&self) -> RowsCommon {
        RowsCommon { operands: self.operands.without_v(), access: self.access }
    }

    /// The same of v and out.
    pub fn rows_v(&self) -> RowsCommon {
        let head_dim = self.operands.dims().v;
        RowsCommon { operands: Operands { head_dim, ..self.operands.without_v() }, access: self.access }
    }

    /// The same where nobody reads v.
    pub fn without_v(&self) -> Common {
        Common { operands: self.operands.without_v(), ..*self }
    }

    /// The same where nobody writes out, dq, dk or dv.
    pub fn without_results(&self) -> Common {
        self.storing(Stored::Rounded)
    }

    /// The same where results are stored so.
    pub(crate) fn storing(&self, stored: Stored) -> Common {
        Common { operands: Operands { stored, ..self.operands }, ..*self }
    }

    /// Of these, what Hopper's own kernels depend on. How many columns are real is the copy engine's to know.
    pub fn hopper(&self) -> HopperCommon {
        let Operands { head_dim, head_dim_v, .. } = self.operands;
        let operands = Operands { head_dim_v: head_dim_v.filter(|of_v| *of_v != head_dim), ..self.operands };
        let overlays = self.scores.overlays.asking();
        HopperCommon { operands, scores: Scores { overlays, ..self.scores } }
    }
}

impl HopperCommon {
    /// Boxes of 64 columns that rows of q and k, and of v and out take, as the copy engine moves them.
    pub(crate) fn boxes(&self) -> [u32; 2] {
        self.operands.dims().map(|columns| columns.div_ceil(64))
    }
}
