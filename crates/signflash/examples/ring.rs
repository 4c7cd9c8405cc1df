//! Ring attention: each rank has some of the positions, keys and values go round, and gradients of keys follow them.
//!
//! Ranks are threads here, and channels carry what NCCL or MPI would; each could have a GPU of its own. What is dropped is
//! what one rank would drop, since a piece of a problem knows where it lies.

use signflash::prelude::*;
use signflash::{GradInputs, Gradients, Outputs, Partial, Piece, TensorName};
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Keys and values of some rank, with the number of the rank; or their gradients.
type Pair<T> = (usize, [Vec<T>; 2]);

/// out, and dq, dk, dv of a rank.
type Found = (Vec<bf16>, [Vec<f32>; 3]);

/// A rank's own tensors: q, k, v and the gradient of out, (batch, rows, heads, head_dim).
struct Own {
    q: Vec<bf16>,
    kv: [Vec<bf16>; 2],
    dout: Vec<bf16>,
}

struct Ring {
    rank: usize,
    ranks: usize,
    keys: (Sender<Pair<bf16>>, Receiver<Pair<bf16>>),
    gradients: (Sender<Pair<f32>>, Receiver<Pair<f32>>),
}

impl Ring {
    fn positions(&self, whole: &Problem, rank: usize) -> Range<usize> {
        let count = whole.shape().seqlen_q / self.ranks;
        rank * count..(rank + 1) * count
    }

    /// This rank's queries and the keys of another one, as a problem; nothing if all of these are hidden.
    fn piece(&self, whole: &Problem, owner: usize) -> Result<Option<Problem>, ProblemError> {
        let [rows, columns] = [self.rank, owner].map(|rank| self.positions(whole, rank));
        let piece = whole.piece(&Piece { rows, columns, ..Piece::of(whole) })?;
        let last = piece.shape().seqlen_q as i64 - 1; // causal: it sees the most
        Ok((!piece.visibility().keys_of(last).is_empty()).then_some(piece))
    }

    fn inputs<'a>(piece: &Problem, q: &'a [bf16], [k, v]: &'a [Vec<bf16>; 2]) -> Inputs<'a, bf16> {
        let tensor = |x: &'a [bf16], name| TensorRef::bshd(x, piece.shape().of(name));
        Inputs::new(tensor(q, TensorName::Q), tensor(k, TensorName::K), tensor(v, TensorName::V))
    }

    /// out and lse of this rank's queries.
    fn forward(&self, whole: &Problem, own: &Own) -> Result<(Vec<bf16>, Vec<f32>), ProblemError> {
        let rows = self.positions(whole, self.rank);
        let mut partial = Partial::of(&whole.piece(&Piece { rows: rows.clone(), ..Piece::of(whole) })?);
        let mut kv = (self.rank, own.kv.clone());
        for step in 0..self.ranks {
            if step + 1 < self.ranks {
                self.keys.0.send(kv.clone()).expect("the next rank lives"); // on its way while we compute
            }
            if let Some(piece) = self.piece(whole, kv.0)? {
                let (mut out, mut lse) = (vec![0.0f32; own.dout.len()], vec![0.0; piece.shape().lse_len()]);
                let mut outputs = Outputs::new(TensorMut::bshd(&mut out, piece.shape().out()), &mut lse);
                CpuEngine::new().forward(&piece, &Self::inputs(&piece, &own.q, &kv.1), &mut outputs)?;
                partial.add(0..rows.len(), &out, &lse);
            }
            if step + 1 < self.ranks {
                kv = self.keys.1.recv().expect("the rank before lives");
            }
        }
        Ok((partial.out.iter().map(|&x| bf16::from_f32(x)).collect(), partial.lse)) // rounded once
    }

    /// dq of this rank's queries, dk and dv of its keys; they travel and are added in f32.
    fn backward(
        &self,
        whole: &Problem,
        own: &Own,
        (out, lse): &(Vec<bf16>, Vec<f32>),
    ) -> Result<[Vec<f32>; 3], ProblemError> {
        let (mut dq, mut kv) = (vec![0.0f32; own.q.len()], (self.rank, own.kv.clone()));
        for step in 0..self.ranks {
            if step + 1 < self.ranks {
                self.keys.0.send(kv.clone()).expect("the next rank lives");
            }
            let mut sums = [vec![0.0f32; kv.1[0].len()], vec![0.0f32; kv.1[1].len()]];
            if let Some(piece) = self.piece(whole, kv.0)? {
                let shape = *piece.shape();
                let (out, dout) =
                    (TensorRef::bshd(out, shape.out()), TensorRef::bshd(&own.dout, shape.out()));
                let read = GradInputs::new(Self::inputs(&piece, &own.q, &kv.1), out, lse, dout);
                let (mut of_q, [dk, dv]) = (vec![0.0f32; dq.len()], &mut sums);
                let mut written = Gradients::new(
                    TensorMut::bshd(&mut of_q, shape.q()),
                    TensorMut::bshd(dk, shape.k()),
                    TensorMut::bshd(dv, shape.v()),
                );
                CpuEngine::new().backward(&piece, &read, &mut written)?;
                add(&mut dq, &of_q);
            }
            if step > 0 {
                let (owner, others) = self.gradients.1.recv().expect("the rank before lives");
                assert_eq!(owner, kv.0, "gradients come one step behind their keys");
                sums.iter_mut().zip(&others).for_each(|(own, other)| add(own, other));
            }
            self.gradients.0.send((kv.0, sums)).expect("the next rank lives"); // after the last step it is their owner
            if step + 1 < self.ranks {
                kv = self.keys.1.recv().expect("the rank before lives");
            }
        }
        let (_, [dk, dv]) = self.gradients.1.recv().expect("the rank before lives");
        Ok([dq, dk, dv])
    }
}

fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

/// How each rank reaches the next.
fn rings(ranks: usize) -> Vec<Ring> {
    let (mut keys, mut gradients): (Vec<_>, Vec<_>) = (0..ranks).map(|_| (channel(), channel())).unzip();
    // What a rank sends, the next one receives: senders move back by one.
    let mut receivers: Vec<_> = keys.drain(..).zip(gradients.drain(..)).collect();
    let senders: Vec<_> =
        receivers.iter().map(|(keys, gradients)| (keys.0.clone(), gradients.0.clone())).collect();
    let ring = |(rank, (keys, gradients)): (usize, ((_, _), (_, _)))| {
        let (to_keys, to_gradients) = senders[(rank + 1) % ranks].clone();
        Ring { rank, ranks, keys: (to_keys, keys.1), gradients: (to_gradients, gradients.1) }
    };
    receivers.drain(..).enumerate().map(ring).collect()
}

/// Four ranks, next to one.
fn main() -> Result<(), ProblemError> {
    let (ranks, shape) = (4, Shape::new(1, 256, 256).heads(4, 2).head_dim(64));
    let dropout = DropoutGenerator::new(42).next_dropout(0.1, &shape)?;
    let whole = Problem::builder(shape).causal(true).dropout(dropout).build()?;
    let numbers =
        |step: f32, len| (0..len).map(|i| bf16::from_f32((i as f32 * step).sin())).collect::<Vec<_>>();
    let [q, dout] = [0.3, 0.9].map(|step| numbers(step, 256 * 4 * 64));
    let [k, v] = [0.7, 1.1].map(|step| numbers(step, 256 * 2 * 64));
    let attended = attention(&whole, &q, &k, &v)?;
    let one = attended.backward(&dout)?;

    // One batch: the positions of a rank lie together in each tensor.
    let share =
        |x: &[bf16], rank| x.chunks(x.len() / ranks).nth(rank).map(<[bf16]>::to_vec).unwrap_or_default();
    let results = std::thread::scope(|scope| {
        let start = |ring: Ring| {
            let [q, k, v, dout] = [&q, &k, &v, &dout].map(|x| share(x, ring.rank));
            let (whole, own) = (&whole, Own { q, kv: [k, v], dout });
            scope.spawn(move || {
                let forward = ring.forward(whole, &own)?;
                let gradients = ring.backward(whole, &own, &forward)?;
                Ok((forward.0, gradients))
            })
        };
        let threads: Vec<_> = rings(ranks).into_iter().map(start).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a rank ends"))
            .collect::<Result<Vec<_>, ProblemError>>()
    })?;

    let floats = |x: &[bf16]| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
    let together = |of: &dyn Fn(&Found) -> Vec<f32>| results.iter().flat_map(of).collect::<Vec<_>>();
    let found = [
        ("out", together(&|x| floats(&x.0)), floats(&attended.out)),
        ("dq", together(&|x| x.1[0].clone()), floats(&one.dq)),
        ("dk", together(&|x| x.1[1].clone()), floats(&one.dk)),
        ("dv", together(&|x| x.1[2].clone()), floats(&one.dv)),
    ];
    for (name, got, expected) in found {
        let norm = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let difference: Vec<f32> = got.iter().zip(&expected).map(|(a, b)| a - b).collect();
        let error = norm(&difference) / norm(&expected);
        println!("{name} of {ranks} ranks next to that of one: {error:.1e} off");
        assert!(error < 8e-3, "{name}: both are within 4e-3 of the formulas");
    }
    Ok(())
}

#[test]
fn four_ranks_give_what_one_gives() {
    main().expect("the pieces fit");
}
