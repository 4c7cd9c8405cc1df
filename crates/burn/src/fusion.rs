//! What results look like, for Burn's fusion, which runs the operator later and asks now.

use crate::operator::{
    BackwardsMetadata, Call, ForwardMetadata, GivenMetadata, MaybeFloatMetadata, OperandsMetadata,
};
use burn::backend::fusion::custom::TensorSpec;
use burn::tensor::{DType, Shape};

pub(crate) fn forward(operands: &OperandsMetadata, call: &Call) -> ForwardMetadata {
    let shape = call.problem.shape();
    let [batch, seqlen_q, num_heads, head_dim_v] = shape.out();
    ForwardMetadata {
        out: TensorSpec::new(Shape::new([batch, num_heads, seqlen_q, head_dim_v]), operands.q.dtype),
        lse: TensorSpec::new(Shape::new([batch, num_heads, seqlen_q]), DType::F32),
    }
}

pub(crate) fn backward(given: &GivenMetadata, call: &Call) -> BackwardsMetadata {
    let OperandsMetadata { q, k, v, bias, .. } = &given.operands;
    let dbias = if given.dbias { bias.clone() } else { MaybeFloatMetadata::Absent };
    let dsinks = match given.dsinks {
        true => {
            let num_heads = call.problem.shape().num_heads;
            MaybeFloatMetadata::Given(TensorSpec::new(Shape::new([num_heads]), DType::F32))
        }
        false => MaybeFloatMetadata::Absent,
    };
    BackwardsMetadata { dq: q.clone(), dk: k.clone(), dv: v.clone(), dbias, dsinks }
}
