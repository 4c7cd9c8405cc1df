//! The operator: what a back end computes, and how `Autodiff` leads gradients back.

use burn::backend::autodiff::{
    Autodiff, NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, NodeGuard, Ops, OpsKind, OpsPrep, Tracked},
};
use burn::backend::tensor::{BoolTensor, FloatTensor};
use burn::backend::{Backend, ExtensionType, backend_extension};
use signflash_core::Problem;

/// What a call computes.
#[derive(Clone, Debug)]
pub struct Call {
    pub(crate) problem: Problem,
    /// Whether a loss may depend on lse.
    pub(crate) with_lse: bool,
    /// Whether the backward has the same bits in every run on a GPU, too.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))] // on a CPU it always has
    pub(crate) deterministic: bool,
}

/// A float tensor, if there is one.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cuda"))]
#[allow(missing_docs)]
pub enum MaybeFloat<B: Backend> {
    Given(FloatTensor<B>),
    Absent,
}

impl<B: Backend> MaybeFloat<B> {
    pub(crate) fn given(self) -> Option<FloatTensor<B>> {
        match self {
            Self::Given(x) => Some(x),
            Self::Absent => None,
        }
    }

    pub(crate) fn of(x: Option<FloatTensor<B>>) -> Self {
        x.map_or(Self::Absent, Self::Given)
    }
}

/// A tensor of bools, if there is one.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cuda"))]
#[allow(missing_docs)]
pub enum MaybeBool<B: Backend> {
    Given(BoolTensor<B>),
    Absent,
}

impl<B: Backend> MaybeBool<B> {
    pub(crate) fn given(self) -> Option<BoolTensor<B>> {
        match self {
            Self::Given(x) => Some(x),
            Self::Absent => None,
        }
    }
}

/// What a forward reads.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cuda"))]
#[allow(missing_docs)]
pub struct Operands<B: Backend> {
    /// (batch, num_heads, seqlen_q, head_dim); k and v likewise.
    pub q: FloatTensor<B>,
    pub k: FloatTensor<B>,
    pub v: FloatTensor<B>,
    /// (1 or sequences, num_heads), f32.
    #[extension_type]
    pub alibi_slopes: MaybeFloat<B>,
    #[extension_type]
    pub bias: MaybeFloat<B>,
    /// True where a key is seen.
    #[extension_type]
    pub mask: MaybeBool<B>,
    /// (num_heads), f32.
    #[extension_type]
    pub sinks: MaybeFloat<B>,
}

/// What a forward gives.
#[derive(ExtensionType)]
#[extension_type(fusion: cfg(feature = "cuda"))]
pub struct Forward<B: Backend> {
    /// (batch, num_heads, seqlen_q, head_dim_v).
    pub out: FloatTensor<B>,
    /// (batch, num_heads, seqlen_q), f32.
    pub lse: FloatTensor<B>,
}

/// A back end that has the operator.
#[backend_extension(
    Autodiff,
    Flex,
    Cube: cfg(feature = "cuda"),
    Fusion: cfg(feature = "cuda")
)]
pub trait SignflashBackend: Backend {
    /// out and lse.
    #[fusion(meta = crate::fusion::forward)]
    fn signflash_forward(#[extension_type] operands: Operands<Self>, call: Call) -> Forward<Self>;
}

/// A back end that has the operator's gradients. There is no second derivative.
#[backend_extension(
    Flex,
    Cube: cfg(feature = "cuda"),
    Fusion: cfg(feature = "cuda")
)]
pub trait SignflashGradients: SignflashBackend {
    /// Those that are wanted.
    #[fusion(meta = crate::fusion::backward)]
    fn signflash_backward(#[extension_type] given: Given<Self>, call: Call) -> Backwards<Self>;
}

/// What a backward reads.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cuda"))]
#[allow(missing_docs)]
pub struct Given<B: Backend> {
    #[extension_type]
    pub operands: Operands<B>,
    pub lse: FloatTensor<B>,
    /// out and its gradient; absent if the loss depends on lse alone.
    #[extension_type]
    pub out: MaybeFloat<B>,
    #[extension_type]
    pub dout: MaybeFloat<B>,
    /// The gradient of lse.
    #[extension_type]
    pub dlse: MaybeFloat<B>,
    pub dbias: bool,
    pub dsinks: bool,
}

/// What a backward gives.
#[derive(Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cuda"))]
#[allow(missing_docs)]
pub struct Backwards<B: Backend> {
    pub dq: FloatTensor<B>,
    pub dk: FloatTensor<B>,
    pub dv: FloatTensor<B>,
    #[extension_type]
    pub dbias: MaybeFloat<B>,
    #[extension_type]
    pub dsinks: MaybeFloat<B>,
}

/// What the nodes of a graph keep.
#[derive(Clone, Debug)]
struct Kept<B: Backend> {
    /// q, k, v, the bias and the sinks by their nodes, which may compute them again. In the place of one that there is not
    /// q stands once more.
    nodes: [NodeId; 5],
    has_bias: bool,
    has_sinks: bool,
    alibi_slopes: MaybeFloat<B>,
    mask: MaybeBool<B>,
    out: FloatTensor<B>,
    lse: FloatTensor<B>,
    call: Call,
}

/// The node of out.
#[derive(Debug)]
struct Out;

/// The node of lse. One of Burn's has one result; if a loss depends on lse, too, a backward of its own is run for it.
#[derive(Debug)]
struct Lse;

impl<B: SignflashGradients> Backward<B, 5> for Out {
    type State = Kept<B>;

    fn backward(self, ops: Ops<Kept<B>, 5>, gradients: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dout = gradients.consume::<B>(&ops.node);
        let out = Some([ops.state.out.clone(), dout]);
        lead_back(ops, out, None, gradients, checkpointer);
    }
}

impl<B: SignflashGradients> Backward<B, 5> for Lse {
    type State = Kept<B>;

    fn backward(self, ops: Ops<Kept<B>, 5>, gradients: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dlse = gradients.consume::<B>(&ops.node);
        lead_back(ops, None, Some(dlse), gradients, checkpointer);
    }
}

fn lead_back<B: SignflashGradients>(
    ops: Ops<Kept<B>, 5>,
    out: Option<[FloatTensor<B>; 2]>,
    dlse: Option<FloatTensor<B>>,
    gradients: &mut Gradients,
    checkpointer: &mut Checkpointer,
) {
    let Kept { nodes, has_bias, has_sinks, alibi_slopes, mask, lse, call, .. } = ops.state;
    let [q, k, v, bias, sinks]: [FloatTensor<B>; 5] = nodes.map(|id| checkpointer.retrieve_node_output(id));
    let maybe = |x, has| if has { MaybeFloat::Given(x) } else { MaybeFloat::Absent };
    let (bias, sinks) = (maybe(bias, has_bias), maybe(sinks, has_sinks));
    let [of_q, of_k, of_v, of_bias, of_sinks] = ops.parents;
    let (out, dout) = out.map_or((None, None), |[out, dout]| (Some(out), Some(dout)));
    let given = Given {
        operands: Operands { q, k, v, alibi_slopes, bias, mask, sinks },
        lse,
        out: MaybeFloat::of(out),
        dout: MaybeFloat::of(dout),
        dlse: MaybeFloat::of(dlse),
        dbias: has_bias && of_bias.is_some(),
        dsinks: has_sinks && of_sinks.is_some(),
    };
    let Backwards { dq, dk, dv, dbias, dsinks } = B::signflash_backward(given, call);
    let found = [
        (of_q, Some(dq)),
        (of_k, Some(dk)),
        (of_v, Some(dv)),
        (of_bias, dbias.given()),
        (of_sinks, dsinks.given()),
    ];
    for (node, gradient) in found {
        if let (Some(node), Some(gradient)) = (node, gradient) {
            gradients.register::<B>(node.id, gradient);
        }
    }
}

/// A graph's tensors, by whose nodes its operator is prepared.
type Graphs<B, C> = Operands<Autodiff<B, C>>;

/// The nodes of q, k, v, bias and sinks.
fn nodes<B: Backend, C: CheckpointStrategy>(operands: &Graphs<B, C>) -> [NodeGuard; 5] {
    let Operands { q, k, v, bias, sinks, .. } = operands;
    let or_q = |x: &MaybeFloat<Autodiff<B, C>>| match x {
        MaybeFloat::Given(x) => x.node(),
        MaybeFloat::Absent => q.node(),
    };
    [q.node(), k.node(), v.node(), or_q(bias), or_q(sinks)]
}

/// What a node keeps, of which it can say later where its operands are.
fn kept<B: SignflashGradients, C: CheckpointStrategy, N>(
    prep: &mut OpsPrep<N, B, Kept<B>, C, 5, Tracked>,
    operands: &Graphs<B, C>,
    Forward { out, lse }: &Forward<B>,
    call: &Call,
) -> Kept<B>
where
    N: Backward<B, 5, State = Kept<B>>,
{
    let Operands { q, k, v, alibi_slopes, bias, mask, sinks } = operands;
    let (bias, sinks) = (bias.clone().given(), sinks.clone().given());
    Kept {
        nodes: [q, k, v, bias.as_ref().unwrap_or(q), sinks.as_ref().unwrap_or(q)].map(|x| prep.checkpoint(x)),
        has_bias: bias.is_some(),
        has_sinks: sinks.is_some(),
        alibi_slopes: inner(alibi_slopes.clone()),
        mask: inner_bool(mask.clone()),
        out: out.clone(),
        lse: lse.clone(),
        call: call.clone(),
    }
}

fn inner<B: Backend, C: CheckpointStrategy>(x: MaybeFloat<Autodiff<B, C>>) -> MaybeFloat<B> {
    MaybeFloat::of(x.given().map(|x| x.into_primitive()))
}

fn inner_bool<B: Backend, C: CheckpointStrategy>(x: MaybeBool<Autodiff<B, C>>) -> MaybeBool<B> {
    match x {
        MaybeBool::Given(x) => MaybeBool::Given(x),
        MaybeBool::Absent => MaybeBool::Absent,
    }
}

impl<B: SignflashGradients, C: CheckpointStrategy> SignflashBackend for Autodiff<B, C> {
    fn signflash_forward(operands: Operands<Self>, call: Call) -> Forward<Self> {
        let (of_out, of_lse) = (nodes(&operands), call.with_lse.then(|| nodes(&operands)));
        let Operands { q, k, v, alibi_slopes, bias, mask, sinks } = operands.clone();
        let of_inner = Operands {
            q: q.into_primitive(),
            k: k.into_primitive(),
            v: v.into_primitive(),
            alibi_slopes: inner(alibi_slopes),
            bias: inner(bias),
            mask: inner_bool(mask),
            sinks: inner(sinks),
        };
        let found = B::signflash_forward(of_inner, call.clone());
        let (out, lse) = (found.out.clone(), found.lse.clone());
        let out = match Out.prepare::<C>(of_out).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let kept = kept(&mut prep, &operands, &found, &call);
                prep.finish(kept, out)
            }
            OpsKind::UnTracked(prep) => prep.finish(out),
        };
        let Some(of_lse) = of_lse else { return Forward { out, lse: FloatTensor::<Self>::new(lse) } };
        let lse = match Lse.prepare::<C>(of_lse).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let kept = kept(&mut prep, &operands, &found, &call);
                prep.finish(kept, lse)
            }
            OpsKind::UnTracked(prep) => prep.finish(lse),
        };
        Forward { out, lse }
    }
}
