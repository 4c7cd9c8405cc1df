//! Tensors that stay on the GPU give what host tensors give, with a gradient that arrives through lse.

use crate::gpu::gpu;
use crate::tensors::normal;
use signflash_core::{
    Dropout, GradInputs, Gradients, Inputs, Outputs, Problem, Shape, TensorMut, TensorRef, bf16,
};
use signflash_cuda::{CudaEngine, CudaError, Resident};

const SHAPE: Shape = Shape::new(2, 70, 50).heads(4, 2).head_dim(64);

/// dq, dk and dv.
type Grads = [Vec<bf16>; 3];

/// q, k, v and dout, stored as (batch, heads, seqlen, head_dim).
fn operands() -> [Vec<bf16>; 4] {
    let len = |shape: [usize; 4]| shape.into_iter().product();
    let [q, k, v, dout] = [SHAPE.q(), SHAPE.k(), SHAPE.v(), SHAPE.out()].map(len);
    [normal(q, 1), normal(k, 2), normal(v, 3), normal(dout, 4)]
}

fn of_host_tensors(engine: &CudaEngine, problem: &Problem, dlse: Option<&[f32]>) -> Grads {
    let [q, k, v, dout] = operands();
    let (mut out, mut lse) = (vec![bf16::ZERO; q.len()], vec![0.0; SHAPE.lse_len()]);
    let (q_view, dout) = (TensorRef::bhsd(&q, SHAPE.q()), TensorRef::bhsd(&dout, SHAPE.out()));
    let [k_view, v_view] = [&k, &v].map(|x| TensorRef::bhsd(x, SHAPE.k()));
    let inputs = Inputs::new(q_view, k_view, v_view);
    let out_view = TensorMut::bhsd(&mut out, SHAPE.out());
    engine.forward(problem, &inputs, &mut Outputs::new(out_view, &mut lse)).unwrap();
    let mut grads = [q.len(), k.len(), v.len()].map(|len| vec![bf16::ZERO; len]);
    let [dq, dk, dv] = &mut grads;
    let mut gradients = Gradients::new(
        TensorMut::bhsd(dq, SHAPE.q()),
        TensorMut::bhsd(dk, SHAPE.k()),
        TensorMut::bhsd(dv, SHAPE.v()),
    );
    let out = TensorRef::bhsd(&out, SHAPE.out());
    let grad_inputs = GradInputs::new(inputs, out, &lse, dout).dlse(dlse);
    engine.backward(problem, &grad_inputs, &mut gradients).unwrap();
    grads
}

#[test]
fn resident_tensors_take_a_gradient_of_lse_as_host_tensors_do() {
    let Some(device) = gpu() else { return };
    let engine = CudaEngine::new(&device).unwrap().with_deterministic(true);
    let dropout = Dropout::new(0.3, 1, 0).unwrap();
    let problem = Problem::builder(SHAPE).causal(true).dropout(dropout).build().unwrap();
    let dlse: Vec<f32> = normal(SHAPE.lse_len(), 5).into_iter().map(bf16::to_f32).collect();
    let operands = operands();
    let resident =
        || Resident::new(&engine, problem.clone(), operands.each_ref().map(Vec::as_slice)).unwrap();
    let gradients = |resident: Resident<'_, bf16>| -> Grads {
        resident.forward().unwrap();
        resident.backward().unwrap();
        [resident.dq(), resident.dk(), resident.dv()].map(Result::unwrap)
    };
    let without = gradients(resident());
    let with = gradients(resident().with_dlse(&dlse).unwrap());
    assert!(without == of_host_tensors(&engine, &problem, None));
    assert!(with == of_host_tensors(&engine, &problem, Some(&dlse)));
    assert!(with[0] != without[0] && with[1] != without[1] && with[2] == without[2]);
    let refused = resident().with_dlse(&dlse[1..]).unwrap_err();
    assert!(matches!(refused, CudaError::Length { .. }), "{refused}");
}
