//! The oracle of windows and packed sequences against sums over all pairs of a query and a key, one pair at a time,
//! which know neither `Visibility` nor `Sequence`.

use signflash_core::suite::{Case, Values};
use signflash_core::{Dropout, Inputs, KeepRule, Problem, Shape, Shard, SignBit, TensorRef, oracle};

const NUM_HEADS: usize = 4;
const GROUP: usize = 2;
const DIM: usize = 3;
const DROPOUT: f32 = 0.3;
const SEED: u64 = 77;

/// What queries see, and how long the sequences are; all queries and keys behind them are left over.
struct Setting {
    left: Option<i64>,
    right: Option<i64>,
    lengths: &'static [(usize, usize)],
    totals: (usize, usize),
}

/// Everything, dense, in the layouts of the tensors; probs by (sequence, head, query, key) in a list.
#[derive(Default)]
struct Results {
    out: Vec<f64>,
    lse: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
    probs: Vec<([usize; 4], f64, bool)>,
}

/// Of one dense problem that is sequence `index`.
fn rule(index: usize) -> KeepRule {
    let shape = Shape::new(1, 1, 1).heads(NUM_HEADS, NUM_HEADS / GROUP).head_dim(DIM);
    let shard = Shard { first_batch: index, ..Shard::default() };
    let dropout = Dropout::new(DROPOUT, SEED, 0).unwrap();
    Problem::builder(shape).dropout(dropout).shard(shard).build().unwrap().keep_rule().unwrap()
}

fn by_entries(setting: &Setting, values: &Values, keep_scale: f64) -> Results {
    let Setting { left, right, lengths, totals: (total_q, total_k) } = *setting;
    let (heads_k, scale) = (NUM_HEADS / GROUP, 1.0 / (DIM as f64).sqrt());
    let mut all = Results {
        out: vec![0.0; total_q * NUM_HEADS * DIM],
        lse: vec![f64::NEG_INFINITY; NUM_HEADS * total_q],
        dq: vec![0.0; total_q * NUM_HEADS * DIM],
        dk: vec![0.0; total_k * heads_k * DIM],
        dv: vec![0.0; total_k * heads_k * DIM],
        probs: Vec::new(),
    };
    let (mut first_q, mut first_k) = (0, 0);
    for (index, &(queries, keys)) in lengths.iter().enumerate() {
        let rule = rule(index);
        for (h, i) in (0..NUM_HEADS).flat_map(|h| (0..queries).map(move |i| (h, i))) {
            let q_at = |d: usize| ((first_q + i) * NUM_HEADS + h) * DIM + d;
            let k_at = |j: usize, d: usize| ((first_k + j) * heads_k + h / GROUP) * DIM + d;
            let sees = |j: usize| {
                let behind = (j as i64 - keys as i64) - (i as i64 - queries as i64);
                left.is_none_or(|left| -left <= behind) && right.is_none_or(|right| behind <= right)
            };
            let sum = |term: &dyn Fn(usize) -> f64| (0..DIM).map(term).sum::<f64>();
            let s = |j: usize| scale * sum(&|d| values.q[q_at(d)] * values.k[k_at(j, d)]);
            let seen: Vec<usize> = (0..keys).filter(|&j| sees(j)).collect();
            if seen.is_empty() {
                continue;
            }
            let lse = seen.iter().map(|&j| s(j).exp()).sum::<f64>().ln();
            all.lse[h * total_q + first_q + i] = lse;
            let p = |j: usize| (s(j) - lse).exp();
            let kept = |j: usize| rule.keep(0, h, i, j);
            let mut delta = 0.0;
            for &j in &seen {
                all.probs.push(([index, h, i, j], p(j), !kept(j)));
                for d in (0..DIM).filter(|_| kept(j)) {
                    let term = keep_scale * p(j) * values.v[k_at(j, d)];
                    all.out[q_at(d)] += term;
                    delta += term * values.dout[q_at(d)];
                }
            }
            for &j in &seen {
                let dp = if kept(j) {
                    keep_scale * sum(&|d| values.dout[q_at(d)] * values.v[k_at(j, d)])
                } else {
                    0.0
                };
                for d in 0..DIM {
                    let ds = scale * p(j) * (dp - delta);
                    all.dq[q_at(d)] += ds * values.k[k_at(j, d)];
                    all.dk[k_at(j, d)] += ds * values.q[q_at(d)];
                    if kept(j) {
                        all.dv[k_at(j, d)] += keep_scale * p(j) * values.dout[q_at(d)];
                    }
                }
            }
        }
        (first_q, first_k) = (first_q + queries, first_k + keys);
    }
    all
}

fn assert_near(name: &str, got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{name}");
    for (n, (got, expected)) in got.iter().zip(expected).enumerate() {
        let near = got == expected || (got - expected).abs() < 1e-12;
        assert!(near, "{name}[{n}] is {got}, entry by entry {expected}");
    }
}

fn assert_oracle_is_the_entries(setting: &Setting, packed: bool) {
    let (total_q, total_k) = setting.totals;
    let lengths = |of: fn(&(usize, usize)) -> usize| {
        setting.lengths.iter().map(|pair| of(pair) as u32).collect::<Vec<u32>>()
    };
    let (of_q, of_k) = (lengths(|pair| pair.0), lengths(|pair| pair.1));
    let left_over =
        (total_q - of_q.iter().sum::<u32>() as usize, total_k - of_k.iter().sum::<u32>() as usize);
    let side = |side: Option<i64>| side.map(|side| side as usize);
    let case = if packed {
        Case::new(left_over.0, left_over.1).packed(&of_q, &of_k)
    } else {
        Case::new(total_q, total_k)
    };
    let case = case.heads(NUM_HEADS, NUM_HEADS / GROUP).head_dim(DIM).dropout_at(DROPOUT, SEED, 0);
    let case = case.window(side(setting.left), side(setting.right));
    let (problem, mut values) = (case.problem(), case.values());
    let Values { q, k, v, dout, .. } = &mut values;
    let [q32, k32, v32, dout32] = [q, k, v, dout].map(|x| {
        let rounded: Vec<f32> = x.iter().map(|&x| x as f32).collect();
        *x = rounded.iter().map(|&x| f64::from(x)).collect();
        rounded
    });
    let shape = problem.shape();
    let inputs = Inputs::new(
        TensorRef::bshd(&q32, shape.q()),
        TensorRef::bshd(&k32, shape.k()),
        TensorRef::bshd(&v32, shape.v()),
    );
    let expected = by_entries(setting, &values, problem.keep_scale());
    let forward = oracle::forward(&problem, &inputs).unwrap();
    assert_near("out", &forward.out, &expected.out);
    assert_near("lse", &forward.lse, &expected.lse);
    let dout = TensorRef::bshd(&dout32, shape.out());
    let gradients = oracle::backward(&problem, &inputs, &dout, None, &forward).unwrap();
    assert_near("dq", &gradients.dq, &expected.dq);
    assert_near("dk", &gradients.dk, &expected.dk);
    assert_near("dv", &gradients.dv, &expected.dv);
    let mut probs = oracle::probs(&problem, &inputs, &forward.lse).unwrap();
    let [_, _, rows, columns] = problem.probs();
    for ([n, h, i, j], p, dropped) in expected.probs {
        let got = std::mem::take(&mut probs[((n * NUM_HEADS + h) * rows + i) * columns + j]);
        assert_eq!(got.is_dropped(), dropped, "{:?}", [n, h, i, j]);
        assert!((got.probability() - p).abs() < 1e-12, "{:?}", [n, h, i, j]);
    }
    assert!(probs.iter().all(|x| x.to_bits() == 0), "+0.0 where nothing is seen");
}

const SIDES: [(Option<i64>, Option<i64>); 6] =
    [(None, None), (Some(2), None), (None, Some(1)), (Some(1), Some(2)), (None, Some(0)), (Some(0), Some(0))];

#[test]
fn a_window_is_what_its_entries_say() {
    for (left, right) in SIDES {
        for lengths in [&[(7, 7)][..], &[(4, 9)], &[(9, 4)]] {
            assert_oracle_is_the_entries(&Setting { left, right, lengths, totals: lengths[0] }, false);
        }
    }
}

#[test]
fn packed_sequences_are_what_their_entries_say() {
    for (left, right) in SIDES {
        for lengths in
            [&[(3, 3), (5, 5)][..], &[(6, 2), (0, 3), (2, 7), (3, 0), (0, 0), (1, 1)], &[], &[(5, 6)]]
        {
            let sum = lengths.iter().fold((0, 0), |(q, k), pair| (q + pair.0, k + pair.1));
            for totals in [sum, (sum.0 + 2, sum.1), (sum.0, sum.1 + 3), (sum.0 + 1, sum.1 + 1)] {
                assert_oracle_is_the_entries(&Setting { left, right, lengths, totals }, true);
            }
        }
    }
}
