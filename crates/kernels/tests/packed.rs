//! Packed sequences: each gets the bits that it gets alone, whatever lies beside it.
//!
//! What the kernels compute of one sequence is the suite's to judge. Here the same kernels compute sequences one by
//! one, and packed, where every other one is NaN, as are the rows behind the last: none may read another's rows, or
//! write them.

use signflash_core::{
    Dropout, GradInputs, Gradients, Inputs, Outputs, Problem, Sequence, Shape, Shard, TensorMut, TensorRef,
    bf16,
};
use signflash_kernels::{Gpu, Interpreted};

/// Sequences, and what is the same for all of them.
#[derive(Clone, Copy)]
struct Case {
    /// Where they begin, and the rows of the tensors.
    q: (&'static [u32], usize),
    k: (&'static [u32], usize),
    heads: [usize; 2],
    head_dim: usize,
    causal: bool,
    dropout_p: f32,
}

/// Of queries and of keys: within a tile, of several tiles, of none, of one; tiles' ends, and rows behind the last.
const UNEVEN: Case = Case {
    q: (&[0, 5, 5, 140, 141, 269], 280),
    k: (&[0, 17, 30, 100, 100, 228], 240),
    heads: [2, 1],
    head_dim: 64,
    causal: false,
    dropout_p: 0.0,
};

const CASES: [Case; 7] = [
    UNEVEN,
    Case { causal: true, dropout_p: 0.2, ..UNEVEN },
    // Moved in pieces, by elements, and in halves of a row.
    Case { head_dim: 40, dropout_p: 0.2, ..UNEVEN },
    Case { head_dim: 41, causal: true, ..UNEVEN },
    Case {
        head_dim: 160,
        causal: true,
        dropout_p: 0.2,
        q: (&[0, 70, 75], 75),
        k: (&[0, 60, 80], 80),
        ..UNEVEN
    },
    Case { q: (&[0, 33], 33), k: (&[0, 70], 70), heads: [1, 1], ..UNEVEN },
    // Nothing but what is left over.
    Case { q: (&[0], 9), k: (&[0], 7), ..UNEVEN },
];

/// q, k, v, out, lse and dout with dlse; gradients.
struct Tensors {
    q: Vec<bf16>,
    k: Vec<bf16>,
    v: Vec<bf16>,
    dout: Vec<bf16>,
    dlse: Vec<f32>,
}

struct Results {
    out: Vec<u16>,
    lse: Vec<u32>,
    dq: Vec<u16>,
    dk: Vec<u16>,
    dv: Vec<u16>,
}

impl Case {
    fn shape(&self) -> Shape {
        Shape::new(1, self.q.1, self.k.1).heads(self.heads[0], self.heads[1]).head_dim(self.head_dim)
    }

    fn problem(&self) -> Problem {
        let problem = Problem::builder(self.shape()).causal(self.causal).packed(self.q.0, self.k.0);
        problem.dropout(Dropout::new(self.dropout_p, 3, 4).unwrap()).build().unwrap()
    }

    /// One of its sequences, as a problem of its own.
    fn alone(&self, sequence: &Sequence) -> Problem {
        let shape = Shape::new(1, sequence.seqlen_q, sequence.seqlen_k)
            .heads(self.heads[0], self.heads[1])
            .head_dim(self.head_dim);
        let shard = Shard { first_batch: sequence.stream, ..Shard::default() };
        let problem = Problem::builder(shape).causal(self.causal).shard(shard);
        problem.dropout(Dropout::new(self.dropout_p, 3, 4).unwrap()).build().unwrap()
    }

    fn tensors(&self) -> Tensors {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as f32 / 32768.0 - 1.0
        };
        let shape = self.shape();
        let mut numbers = |sizes: [usize; 4]| -> Vec<bf16> {
            (0..sizes.iter().product()).map(|_| bf16::from_f32(next())).collect()
        };
        let [q, k, v, dout] = [shape.q(), shape.k(), shape.v(), shape.out()].map(&mut numbers);
        Tensors { q, k, v, dout, dlse: (0..shape.lse_len()).map(|_| next()).collect() }
    }
}

fn bits(numbers: &[bf16]) -> Vec<u16> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

fn compute(interpreted: &Interpreted, problem: &Problem, tensors: &Tensors) -> Results {
    let shape = problem.shape();
    let (mut out, mut lse) = (vec![bf16::NAN; tensors.q.len()], vec![f32::NAN; shape.lse_len()]);
    let inputs = Inputs::new(
        TensorRef::bshd(&tensors.q, shape.q()),
        TensorRef::bshd(&tensors.k, shape.k()),
        TensorRef::bshd(&tensors.v, shape.v()),
    );
    let mut outputs = Outputs::new(TensorMut::bshd(&mut out, shape.out()), &mut lse);
    interpreted.forward(problem, &inputs, &mut outputs).unwrap();
    let [mut dq, mut dk, mut dv] =
        [&tensors.q, &tensors.k, &tensors.v].map(|tensor| vec![bf16::NAN; tensor.len()]);
    let mut gradients = Gradients::new(
        TensorMut::bshd(&mut dq, shape.q()),
        TensorMut::bshd(&mut dk, shape.k()),
        TensorMut::bshd(&mut dv, shape.v()),
    );
    let dout = TensorRef::bshd(&tensors.dout, shape.out());
    let grad_inputs = GradInputs::new(inputs, TensorRef::bshd(&out, shape.out()), &lse, dout);
    interpreted.backward(problem, &grad_inputs.dlse(&tensors.dlse[..]), &mut gradients).unwrap();
    Results {
        out: bits(&out),
        lse: lse.iter().map(|x| x.to_bits()).collect(),
        dq: bits(&dq),
        dk: bits(&dk),
        dv: bits(&dv),
    }
}

/// Rows of a tensor (rows, width).
fn rows<T: Copy>(all: &[T], first: usize, count: usize, width: usize) -> Vec<T> {
    all[first * width..(first + count) * width].to_vec()
}

/// Rows of lse of each head.
fn rows_of_heads<T: Copy>(all: &[T], first: usize, count: usize, total: usize) -> Vec<T> {
    all.chunks(total.max(1)).flat_map(|head| head[first..first + count].to_vec()).collect()
}

impl Case {
    /// What of these belongs to a sequence.
    fn of(&self, sequence: &Sequence, all: &Results) -> Results {
        let Sequence { first_q, first_k, seqlen_q, seqlen_k, .. } = *sequence;
        let [width_q, width_k] = self.heads.map(|heads| heads * self.head_dim);
        Results {
            out: rows(&all.out, first_q, seqlen_q, width_q),
            lse: rows_of_heads(&all.lse, first_q, seqlen_q, self.q.1),
            dq: rows(&all.dq, first_q, seqlen_q, width_q),
            dk: rows(&all.dk, first_k, seqlen_k, width_k),
            dv: rows(&all.dv, first_k, seqlen_k, width_k),
        }
    }

    fn inputs_of(&self, sequence: &Sequence, all: &Tensors) -> Tensors {
        let Sequence { first_q, first_k, seqlen_q, seqlen_k, .. } = *sequence;
        let [width_q, width_k] = self.heads.map(|heads| heads * self.head_dim);
        Tensors {
            q: rows(&all.q, first_q, seqlen_q, width_q),
            k: rows(&all.k, first_k, seqlen_k, width_k),
            v: rows(&all.v, first_k, seqlen_k, width_k),
            dout: rows(&all.dout, first_q, seqlen_q, width_q),
            dlse: rows_of_heads(&all.dlse, first_q, seqlen_q, self.q.1),
        }
    }

    /// Makes a sequence's rows NaN.
    fn poison(&self, sequence: &Sequence, all: &mut Tensors) {
        let Sequence { first_q, first_k, seqlen_q, seqlen_k, .. } = *sequence;
        let [width_q, width_k] = self.heads.map(|heads| heads * self.head_dim);
        let fill = |tensor: &mut [bf16], first: usize, count: usize, width: usize| {
            tensor[first * width..(first + count) * width].fill(bf16::NAN);
        };
        fill(&mut all.q, first_q, seqlen_q, width_q);
        fill(&mut all.dout, first_q, seqlen_q, width_q);
        fill(&mut all.k, first_k, seqlen_k, width_k);
        fill(&mut all.v, first_k, seqlen_k, width_k);
        for head in all.dlse.chunks_mut(self.q.1.max(1)) {
            head[first_q..first_q + seqlen_q].fill(f32::NAN);
        }
    }

    /// Each sequence's results are its own, whatever the others are.
    fn check(&self, interpreted: &Interpreted) {
        let problem = self.problem();
        let is_over = |sequence: &Sequence| sequence.stream >= problem.sequence_count();
        for poisoned in 0..2 {
            let (clean, mut tensors) = (self.tensors(), self.tensors());
            for sequence in problem.sequences().filter(|x| is_over(x) || x.stream % 2 == poisoned) {
                self.poison(&sequence, &mut tensors);
            }
            let all = compute(interpreted, &problem, &tensors);
            for sequence in problem.sequences() {
                let got = self.of(&sequence, &all);
                if is_over(&sequence) {
                    let zeros = [&got.out, &got.dq, &got.dk, &got.dv].into_iter().flatten();
                    assert!(zeros.into_iter().all(|bits| *bits == 0), "{interpreted:?}: {sequence:?}");
                    assert!(got.lse.iter().all(|bits| *bits == f32::NEG_INFINITY.to_bits()), "{sequence:?}");
                } else if sequence.stream % 2 != poisoned {
                    let own = self.inputs_of(&sequence, &clean);
                    let alone = compute(interpreted, &self.alone(&sequence), &own);
                    // Thousands of numbers are not for reading.
                    let parts = [
                        ("out", got.out == alone.out),
                        ("lse", got.lse == alone.lse),
                        ("dq", got.dq == alone.dq),
                        ("dk", got.dk == alone.dk),
                        ("dv", got.dv == alone.dv),
                    ];
                    assert!(parts.iter().all(|(_, same)| *same), "{interpreted:?}: {sequence:?}: {parts:?}");
                }
            }
        }
    }
}

fn on(gpu: Gpu, seed: u64) {
    // dq in one order of additions, or its bits were not those of another run.
    let interpreted = Interpreted { gpu, seed, deterministic: true };
    CASES.iter().for_each(|case| case.check(&interpreted));
}

#[test]
fn sequences_get_the_bits_that_they_get_alone_on_small_gpus() {
    on(Gpu::SMALL, 0);
}

#[test]
fn sequences_get_the_bits_that_they_get_alone_on_ampere() {
    on(Gpu::AMPERE, 1);
}

#[test]
fn sequences_get_the_bits_that_they_get_alone_on_hopper() {
    on(Gpu::HOPPER, 2);
}
