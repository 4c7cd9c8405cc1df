//! The operator: what a back end computes, and how `Autodiff` leads gradients back.

use burn::backend::autodiff::{
    Autodiff, NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::{Backend, ExtensionType, backend_extension, tensor::FloatTensor};
use signflash_core::Problem;

/// What a call computes.
#[derive(Clone, Debug)]
pub struct Call(pub(crate) Problem);

/// What a forward gives.
#[derive(ExtensionType)]
pub struct Forward<B: Backend> {
    /// (batch, num_heads, seqlen_q, head_dim_v).
    pub out: FloatTensor<B>,
    /// (batch, num_heads, seqlen_q), f32.
    pub lse: FloatTensor<B>,
}

/// What a backward gives.
#[derive(ExtensionType)]
#[allow(missing_docs)]
pub struct Backwards<B: Backend> {
    pub dq: FloatTensor<B>,
    pub dk: FloatTensor<B>,
    pub dv: FloatTensor<B>,
}

/// A back end that has the operator.
#[backend_extension(Autodiff, Flex)]
pub trait SignflashBackend: Backend {
    /// out and lse.
    fn signflash_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        call: Call,
    ) -> Forward<Self>;

    /// dq, dk and dv of the forward's operands and results and the gradient of out.
    fn signflash_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        dout: FloatTensor<Self>,
        call: Call,
    ) -> Backwards<Self>;
}

/// The node of a graph.
#[derive(Debug)]
struct Node;

impl<B: SignflashBackend> Backward<B, 3> for Node {
    /// q, k and v by their nodes, which may compute them again; out, lse and the call themselves.
    type State = ([NodeId; 3], [FloatTensor<B>; 2], Call);

    fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, checkpointer: &mut Checkpointer) {
        let parents = ops.parents;
        let dout = gradients.consume::<B>(&ops.node);
        let (operands, [out, lse], call) = ops.state;
        let [q, k, v]: [FloatTensor<B>; 3] = operands.map(|id| checkpointer.retrieve_node_output(id));
        let Backwards { dq, dk, dv } = B::signflash_backward(q, k, v, out, lse, dout, call);
        for (node, gradient) in parents.into_iter().zip([dq, dk, dv]) {
            if let Some(node) = node {
                gradients.register::<B>(node.id, gradient);
            }
        }
    }
}

impl<B: SignflashBackend, C: CheckpointStrategy> SignflashBackend for Autodiff<B, C> {
    fn signflash_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        call: Call,
    ) -> Forward<Self> {
        match Node.prepare::<C>([q.node(), k.node(), v.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let operands = [prep.checkpoint(&q), prep.checkpoint(&k), prep.checkpoint(&v)];
                let Forward { out, lse } = B::signflash_forward(
                    q.into_primitive(),
                    k.into_primitive(),
                    v.into_primitive(),
                    call.clone(),
                );
                let state = (operands, [out.clone(), lse.clone()], call);
                Forward { out: prep.finish(state, out), lse: FloatTensor::<Self>::new(lse) }
            }
            OpsKind::UnTracked(prep) => {
                let Forward { out, lse } =
                    B::signflash_forward(q.into_primitive(), k.into_primitive(), v.into_primitive(), call);
                Forward { out: prep.finish(out), lse: FloatTensor::<Self>::new(lse) }
            }
        }
    }

    fn signflash_backward(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Call,
    ) -> Backwards<Self> {
        panic!("signflash: attention has no second derivative")
    }
}
