//! An implementation that is broken in one way, or takes only some problems.

use crate::scores::{Mistaken, dbias_of_one_batch};
use signflash_core::suite::{Implementation, Reference, RunError};
use signflash_core::{
    Dropout, Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem, Shard, TensorMut, TensorRef,
    Window, bf16,
};
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is wrong with [`Broken`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    OneSignBit,
    /// Reads the sign bit as `x >= 0`: a dropped -0.0 counts as kept.
    SignByComparison,
    MagnitudeOfOneProbability,
    MinusZeroWhereInvisible,
    TinyWhereInvisible,
    NoKeepScale,
    KeepScaleOfTheOtherRule,
    OnePercent,
    SwapsHeads,
    RoundsLikeBf16,
    LseOfBase2,
    ForgetsTheLastElement,
    ForgetsOneProbability,
    WritesBesideARow,
    ReadsBesideARow,
    IgnoresTheShard,
    IgnoresTheHighWordOfTheOffset,
    SeesTheFuture,
    /// Lets the last query face the last key, whatever the problem says.
    IgnoresTheDiagonal,
    /// The window begins a key too early.
    LeftOneTooFar,
    LeftOneTooNear,
    /// The window ends a key too late.
    RightOneTooFar,
    RightOneTooNear,
    /// Multiplies the value behind a packed sequence's last by 0.
    ReadsTheNextSequence,
    /// Each packed sequence drops what the next one does.
    DropsAsTheNextSequence,
    /// One diagonal for all packed sequences, that of the tensors.
    DiagonalOfTheWhole,
    /// Leaves what lies behind the last packed sequence as it was.
    ForgetsWhatIsLeftOver,
    DiagonalOneTooFar,
    DiagonalOneTooNear,
    NanInBlindRows,
    GarbageInBlindRows,
    InfinityForNan,
    NotReproducible,
    GradientsWithoutScale,
    GradientsWithoutDropout,
    DvOfHalfTheGroup,
    IgnoresDlse,
    /// As if delta, of which it is part, were already divided by the keep scale.
    DlseTimesKeepScale,
    NanOfBlindDlse,
    /// ds of a softcap as if scores grew with their products.
    SlopeLeftOut,
    SoftcapAfterTheBias,
    BiasOfTheNextHead,
    InvertsTheMask,
    AlibiOneTooFar,
    /// out has the sink in its sum, lse has not.
    SinkNotInLse,
    ScaleOfTheHeadDimOfV,
    /// dbias of the last of the batches that share a bias.
    DbiasOfOneBatch,
    DsinksOfTheNextHead,
    Fails,
    /// No fault: it says so.
    TakesNoF32,
    /// Likewise.
    TakesCausalAlone,
}

#[derive(Debug)]
pub(crate) struct Broken {
    fault: Fault,
    calls: AtomicUsize,
}

impl Broken {
    pub(crate) fn by(fault: Fault) -> Self {
        Self { fault, calls: AtomicUsize::new(0) }
    }

    fn problem(&self, problem: &Problem) -> Problem {
        let builder = problem.to_builder();
        let Window { left, right } = problem.window();
        let builder = match self.fault {
            Fault::IgnoresTheShard => {
                let num_heads_total = Some(problem.shape().num_heads);
                builder.shard(Shard { num_heads_total, ..Shard::default() })
            }
            Fault::IgnoresTheHighWordOfTheOffset => {
                let dropout = problem.dropout().expect("the fault is tried with dropout");
                let low = u64::from(dropout.offset() as u32);
                let of_low_word = Dropout::new(dropout.p(), dropout.seed(), low).expect("as valid");
                builder.dropout(of_low_word.with_scale_rule(dropout.scale_rule()))
            }
            Fault::IgnoresTheDiagonal => {
                let shape = problem.shape();
                builder.diagonal(shape.seqlen_k as i64 - shape.seqlen_q as i64)
            }
            Fault::LeftOneTooFar => builder.window(left.map(|left| left + 1), right),
            Fault::LeftOneTooNear => builder.window(left.map(|left| left - 1), right),
            Fault::RightOneTooFar => builder.window(left, right.map(|right| right + 1)),
            Fault::RightOneTooNear => builder.window(left, right.map(|right| right - 1)),
            Fault::DropsAsTheNextSequence => {
                let shard = *problem.shard();
                builder.shard(Shard { first_batch: shard.first_batch + 1, ..shard })
            }
            Fault::DiagonalOneTooFar => builder.diagonal(problem.diagonal() + 1),
            Fault::DiagonalOneTooNear => builder.diagonal(problem.diagonal() - 1),
            _ => builder,
        };
        builder.build().expect("as valid as it came")
    }
}

/// Every element, with its index.
fn each<T: Element>(tensor: &mut TensorMut<'_, T>, change: impl Fn([usize; 4], T) -> T) {
    let [na, nb, nc, nd] = tensor.shape;
    for a in 0..na {
        for b in 0..nb {
            for c in 0..nc {
                for d in 0..nd {
                    let x = tensor.at_mut([a, b, c, d]);
                    *x = change([a, b, c, d], *x);
                }
            }
        }
    }
}

/// Heads 0 and 1 of all rows.
fn swap_heads<T: Element>(tensor: &mut TensorMut<'_, T>) {
    let [batch, rows, _, dim] = tensor.shape;
    for (b, i) in (0..batch).flat_map(|b| (0..rows).map(move |i| (b, i))) {
        for d in 0..dim {
            let first = *tensor.at_mut([b, i, 0, d]);
            let second = std::mem::replace(tensor.at_mut([b, i, 1, d]), first);
            *tensor.at_mut([b, i, 0, d]) = second;
        }
    }
}

fn scaled<T: Element>(x: T, factor: f64) -> T {
    T::from_f32((x.to_f64() * factor) as f32)
}

/// Each packed sequence as a problem of its own, whose diagonal is that of all queries and keys.
fn sequence_by_sequence<T: Element>(
    problem: &Problem,
    inputs: &Inputs<'_, T>,
    outputs: &mut Outputs<'_, T>,
) -> Result<(), RunError> {
    let shape = *problem.shape();
    let rows = |x: &TensorRef<'_, T>, first: usize, len: usize| {
        let (at, [_, _, heads, dim]) = (x.row_offset(0, first, 0), x.shape);
        let mut dense = Vec::new();
        for (i, h) in (0..len).flat_map(|i| (0..heads).map(move |h| (i, h))) {
            dense.extend_from_slice(&x.data[at + i * x.strides[1] + h * x.strides[2]..][..dim]);
        }
        dense
    };
    for sequence in problem.sequences() {
        let own = shape.seqlen_q(sequence.seqlen_q).seqlen_k(sequence.seqlen_k);
        let Window { left, right } = problem.window();
        let one = Problem::builder(own).window(left, right).diagonal(problem.diagonal()).build()?;
        let q = rows(&inputs.q, sequence.first_q, sequence.seqlen_q);
        let [k, v] = [&inputs.k, &inputs.v].map(|x| rows(x, sequence.first_k, sequence.seqlen_k));
        let inputs = Inputs::new(
            TensorRef::bshd(&q, own.q()),
            TensorRef::bshd(&k, own.k()),
            TensorRef::bshd(&v, own.v()),
        );
        let (mut out, mut lse) = (q.clone(), vec![0.0; own.lse_len()]);
        Reference.forward(
            &one,
            &inputs,
            &mut Outputs::new(TensorMut::bshd(&mut out, own.out()), &mut lse),
        )?;
        for (n, x) in out.into_iter().enumerate() {
            let [row, head, d] =
                [n / own.head_dim / own.num_heads, n / own.head_dim % own.num_heads, n % own.head_dim];
            *outputs.out.at_mut([0, sequence.first_q + row, head, d]) = x;
        }
        for (n, x) in lse.into_iter().enumerate() {
            let (head, i) = (n / own.seqlen_q, n % own.seqlen_q);
            outputs.lse[sequence.lse(&shape, i, head)] = x;
        }
    }
    outputs.probs.iter_mut().for_each(|probs| each(probs, |_, _| T::from_f32(0.0)));
    Ok(())
}

impl Implementation for Broken {
    fn name(&self) -> String {
        format!("{:?}", self.fault)
    }

    fn supports(&self, dtype: Dtype, problem: &Problem) -> Result<(), String> {
        match self.fault {
            Fault::TakesNoF32 if dtype == Dtype::F32 => Err("no f32 here".into()),
            Fault::TakesCausalAlone if !problem.causal() => Err("causal only".into()),
            _ => Ok(()),
        }
    }

    fn forward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<(), RunError> {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        let last = outputs.out.shape.map(|size| size - 1);
        let before = *outputs.out.at_mut(last);
        let one_probability = outputs.probs.as_mut().filter(|_| self.fault == Fault::ForgetsOneProbability);
        let probs_before = one_probability.map(|probs| *probs.at_mut([0, 1, 3, 2]));
        if self.fault == Fault::DiagonalOfTheWhole {
            return sequence_by_sequence(problem, inputs, outputs);
        }
        if let Some(mistaken) = Mistaken::by(self.fault, problem, inputs) {
            return mistaken.forward(self.fault, problem, inputs, outputs);
        }
        Reference.forward(&self.problem(problem), inputs, outputs)?;
        let out = &mut outputs.out;
        let blind = |i: usize| problem.visibility().keys_of(i as i64).is_empty();
        match self.fault {
            Fault::NoKeepScale => each(out, |_, x| scaled(x, 1.0 / problem.keep_scale())),
            Fault::KeepScaleOfTheOtherRule => {
                let nominal = 1.0 / (1.0 - f64::from(problem.dropout().expect("it has dropout").p()));
                each(out, |_, x| scaled(x, nominal / problem.keep_scale()));
            }
            Fault::OnePercent => each(out, |_, x| scaled(x, 1.01)),
            Fault::SwapsHeads => swap_heads(out),
            Fault::RoundsLikeBf16 => each(out, |_, x| T::from_f32(bf16::from_f32(x.to_f32()).to_f32())),
            Fault::LseOfBase2 => outputs.lse.iter_mut().for_each(|x| *x *= std::f32::consts::LOG2_E),
            Fault::ForgetsTheLastElement => *out.at_mut(last) = before,
            Fault::WritesBesideARow => out.data[out.shape[3]] = T::default(),
            Fault::ReadsBesideARow => {
                let beside = inputs.v.data[inputs.v.shape[3]].to_f32() * 0.0; // "padding, it cannot matter"
                each(out, |_, x| T::from_f32(x.to_f32() + beside));
            }
            Fault::ReadsTheNextSequence => {
                for sequence in problem.sequences() {
                    let behind = sequence.first_k + sequence.seqlen_k;
                    if behind == problem.shape().seqlen_k {
                        continue;
                    }
                    let nothing = inputs.v.at([0, behind, 0, 0]).to_f32() * 0.0; // "it has no weight"
                    let own = sequence.first_q..sequence.first_q + sequence.seqlen_q;
                    each(
                        out,
                        |[_, i, ..], x| {
                            if own.contains(&i) { T::from_f32(x.to_f32() + nothing) } else { x }
                        },
                    );
                }
            }
            Fault::ForgetsWhatIsLeftOver => *out.at_mut(last) = before,
            Fault::NanInBlindRows => {
                each(out, |[_, i, ..], x| if blind(i) { T::from_f32(f32::NAN) } else { x });
            }
            Fault::GarbageInBlindRows => {
                each(out, |[_, i, ..], x| if blind(i) { T::from_f32(1e-6) } else { x });
            }
            Fault::InfinityForNan => {
                each(out, |_, x| if x.to_f32().is_nan() { T::from_f32(f32::INFINITY) } else { x });
            }
            Fault::NotReproducible if calls % 2 == 1 => {
                *out.at_mut(last) = scaled(*out.at_mut(last), 1.01);
            }
            Fault::Fails => return Err("out of luck".into()),
            _ => {}
        }
        let Some(probs) = &mut outputs.probs else { return Ok(()) };
        let visible = |i: usize, j: usize| problem.visibility().keys_of(i as i64).contains(j as i64);
        match self.fault {
            Fault::OneSignBit => {
                each(probs, |index, x| if index == [0, 1, 3, 2] { x.encode(!x.is_dropped()) } else { x })
            }
            Fault::SignByComparison => each(probs, |_, x| x.encode(x.to_f32() < 0.0)),
            Fault::MagnitudeOfOneProbability => {
                each(probs, |index, x| if index == [0, 1, 3, 2] { scaled(x, 1.03) } else { x })
            }
            Fault::MinusZeroWhereInvisible => {
                each(probs, |[_, _, i, j], x| if visible(i, j) { x } else { x.encode(true) });
            }
            Fault::TinyWhereInvisible => {
                each(probs, |[_, _, i, j], x| if visible(i, j) { x } else { T::from_f32(1e-7) });
            }
            Fault::ForgetsOneProbability => {
                *probs.at_mut([0, 1, 3, 2]) = probs_before.expect("there are probs");
            }
            _ => {}
        }
        Ok(())
    }

    fn backward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), RunError> {
        if let Some(mistaken) = Mistaken::by(self.fault, problem, &inputs.inputs) {
            return mistaken.backward(self.fault, problem, inputs, gradients);
        }
        let problem = self.problem(problem);
        let problem = match self.fault {
            Fault::GradientsWithoutDropout => {
                problem.to_builder().dropout(Dropout::new(0.0, 0, 0)?).build()?
            }
            Fault::SeesTheFuture => problem.to_builder().causal(false).build()?,
            _ => problem,
        };
        let scaled_dlse: Option<Vec<f32>> = inputs.dlse.map(|dlse| {
            let keep_scale = problem.keep_scale() as f32;
            dlse.iter().map(|x| x * keep_scale).collect()
        });
        let inputs = &match self.fault {
            Fault::IgnoresDlse => GradInputs::new(inputs.inputs, inputs.out, inputs.lse, inputs.dout),
            Fault::DlseTimesKeepScale => inputs.dlse(scaled_dlse.as_deref()),
            _ => *inputs,
        };
        Reference.backward(&problem, inputs, gradients)?;
        match self.fault {
            Fault::GradientsWithoutScale => {
                each(&mut gradients.dk, |_, x| scaled(x, 1.0 / problem.softmax_scale()))
            }
            Fault::OnePercent => {
                for gradient in [&mut gradients.dq, &mut gradients.dk, &mut gradients.dv] {
                    each(gradient, |_, x| scaled(x, 1.01));
                }
            }
            Fault::SwapsHeads => {
                [&mut gradients.dq, &mut gradients.dk, &mut gradients.dv].into_iter().for_each(swap_heads);
            }
            Fault::DvOfHalfTheGroup => each(&mut gradients.dv, |_, x| scaled(x, 0.5)),
            Fault::NanOfBlindDlse => {
                let dlse = inputs.dlse.expect("the case has one");
                let shape = *problem.shape();
                each(&mut gradients.dq, |[b, i, h, _], x| {
                    let row = (b * shape.num_heads + h) * shape.seqlen_q + i;
                    T::from_f32(x.to_f32() + 0.0 * dlse[row]) // "its p is 0, it cannot matter"
                });
            }
            Fault::DbiasOfOneBatch => dbias_of_one_batch(&problem, inputs, gradients)?,
            Fault::DsinksOfTheNextHead => {
                gradients.dsinks.as_mut().expect("the case has some").rotate_left(1)
            }
            Fault::ForgetsTheLastElement => {
                let last = gradients.dk.shape.map(|size| size - 1);
                *gradients.dk.at_mut(last) = T::from_f32(0.0);
            }
            _ => {}
        }
        Ok(())
    }
}
