//! The passes on chosen instruction sets, tiles and orders: any band, packed sequences, and what is computed of them.
//!
//! `tests/inside.rs` runs them: a test program of the library itself would compile every kernel a second time, which takes
//! longer than all of its tests.
#![allow(missing_docs)] // their names say it

use super::*;
use crate::entry::kernels;
use crate::isa::Isa;
use crate::raw::RawTensor;
use crate::score_stage::ScoreOperands;
use crate::sequence::{Sequence, Sequences};
use crate::team::Crew;
use crate::view::{FloatsMut, View, ViewMut};
use signflash_core::suite::Values;
use signflash_core::{
    Dropout, Dtype, Element, Inputs, Problem, Shape, Shard, TensorMut, TensorRef, Visibility, bf16, oracle,
};

/// Keys of a chunk: few, so that windows begin and end in any of them.
const CHUNK_KEYS: usize = 64;

/// Dense operands and results, bshd.
struct Operands<T> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    dout: Vec<T>,
}

#[derive(Clone, Debug, PartialEq)]
struct Results {
    out: Vec<f64>,
    lse: Vec<f64>,
    probs: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
}

impl<T: Element> Operands<T> {
    fn normal(shape: &Shape) -> Self {
        let Values { q, k, v, dout, .. } = Values::normal(shape, 3, 1.0, 1.0);
        let [q, k, v, dout] =
            [q, k, v, dout].map(|x| x.iter().map(|&x| T::from_f32(x as f32)).collect::<Vec<T>>());
        Self { q, k, v, dout }
    }
}

/// How the engine's passes are run.
#[derive(Clone, Copy, Debug)]
struct How {
    isa: Isa,
    tile_rows: usize,
    /// dq in a pass of its own.
    two_passes: bool,
}

/// The instruction sets of this machine, but AMX emulated: for bf16, where there is what makes its operands.
fn emulated_too(dtype: Dtype) -> Vec<Isa> {
    let mut isas = Isa::available();
    isas.retain(|&isa| isa != Isa::Amx);
    isas.extend((dtype == Dtype::Bf16 && Isa::Avx512Bf16.is_available()).then_some(Isa::Amx));
    isas
}

/// All results of these sequences of a problem.
fn run<T: Element>(how: How, problem: &Problem, sequences: &[Sequence], operands: &Operands<T>) -> Results {
    let shape = problem.shape();
    let zeros = |shape: [usize; 4]| vec![T::from_f32(f32::NAN); shape.into_iter().product()];
    let [mut out, mut probs] = [shape.out(), problem.probs()].map(zeros);
    let [mut dq, mut dk, mut dv] = [shape.q(), shape.k(), shape.v()].map(zeros);
    let (met, mut lse) = (AtomicBool::new(false), vec![f32::NAN; shape.lse_len()]);
    let read = |x: &[T], shape: [usize; 4]| RawTensor::of(&TensorRef::bshd(x, shape));
    let write = |x: &mut [T], shape: [usize; 4]| RawTensor::of_mut(&mut TensorMut::bshd(x, shape));
    let call = Call::new(problem, Sequences::These(sequences), ScoreOperands::default(), &met);
    let workers = Workers { kernels: kernels(how.isa, T::DTYPE, false), crew: Crew::ALONE };
    // SAFETY: the tensors are this function's, dense, of these shapes, and outlive the views.
    unsafe {
        let (q, k) = (View::new(read(&operands.q, shape.q())), View::new(read(&operands.k, shape.k())));
        let v = View::new(read(&operands.v, shape.v()));
        let forward = Forward {
            scores: Scores { call, q, k, tile_rows: how.tile_rows },
            v,
            out: ViewMut::new(write(&mut out, shape.out())),
            lse: FloatsMut::new(&mut lse),
            probs: Some(ViewMut::new(write(&mut probs, problem.probs()))),
        };
        run_forward(&forward, workers);
        let backward = Backward {
            call,
            q,
            k,
            v,
            out: View::new(read(&out, shape.out())),
            dout: View::new(read(&operands.dout, shape.out())),
            lse: &lse,
            references: None,
            dlse: None,
            dq: ViewMut::new(write(&mut dq, shape.q())),
            dk: ViewMut::new(write(&mut dk, shape.k())),
            dv: ViewMut::new(write(&mut dv, shape.v())),
            dbias: None,
            chunk_keys: CHUNK_KEYS,
        };
        if how.two_passes {
            run_two_passes(&backward, workers);
        } else {
            run_backward(&backward, workers, usize::MAX);
        }
    }
    let f64s = |x: Vec<T>| x.iter().map(|x| x.to_f64()).collect();
    let lse = lse.into_iter().map(f64::from).collect();
    Results { out: f64s(out), lse, probs: f64s(probs), dq: f64s(dq), dk: f64s(dk), dv: f64s(dv) }
}

/// What the oracle says of one sequence and one band: of each row by itself, as a problem of those keys that it sees.
fn truth<T: Element>(problem: &Problem, band: &Visibility<i64>, operands: &Operands<T>) -> Results {
    let shape = *problem.shape();
    let (q_row, k_row) = (shape.num_heads * shape.head_dim, shape.num_heads_k * shape.head_dim);
    let zeros = |shape: [usize; 4]| vec![0.0f64; shape.into_iter().product()];
    let mut all = Results {
        out: zeros(shape.out()),
        lse: vec![f64::NEG_INFINITY; shape.lse_len()],
        probs: zeros(shape.probs()),
        dq: zeros(shape.q()),
        dk: zeros(shape.k()),
        dv: zeros(shape.v()),
    };
    for i in 0..shape.seqlen_q {
        let keys = band.keys_of(i as i64).positions();
        if keys.is_empty() {
            continue;
        }
        let row_shape = shape.seqlen_q(1).seqlen_k(keys.len());
        let shard = problem.shard();
        let shard =
            Shard { first_row: shard.first_row + i, first_column: shard.first_column + keys.start, ..*shard };
        let row = Problem::builder(row_shape).shard(shard);
        let row = match problem.dropout() {
            Some(dropout) => row.dropout(*dropout),
            None => row,
        };
        let row = row.build().expect("a row of a valid problem");
        let (queries, keys_at) = (i * q_row..(i + 1) * q_row, keys.start * k_row..keys.end * k_row);
        let inputs = Inputs::new(
            TensorRef::bshd(&operands.q[queries.clone()], row_shape.q()),
            TensorRef::bshd(&operands.k[keys_at.clone()], row_shape.k()),
            TensorRef::bshd(&operands.v[keys_at.clone()], row_shape.v()),
        );
        let forward = oracle::forward(&row, &inputs).expect("the operands fit");
        let probs = oracle::probs(&row, &inputs, &forward.lse).expect("the operands fit");
        let dout = TensorRef::bshd(&operands.dout[queries.clone()], row_shape.out());
        let gradients = oracle::backward(&row, &inputs, &dout, None, &forward).expect("the operands fit");
        all.out[queries.clone()].copy_from_slice(&forward.out);
        all.dq[queries].copy_from_slice(&gradients.dq);
        for h in 0..shape.num_heads {
            let at = h * shape.seqlen_q + i;
            all.lse[at] = forward.lse[h];
            all.probs[at * shape.seqlen_k..][keys.clone()]
                .copy_from_slice(&probs[h * keys.len()..][..keys.len()]);
        }
        for (sum, x) in all.dk[keys_at.clone()].iter_mut().zip(&gradients.dk) {
            *sum += x;
        }
        for (sum, x) in all.dv[keys_at].iter_mut().zip(&gradients.dv) {
            *sum += x;
        }
    }
    all
}

/// That out and dq of rows that see nothing, and dk and dv of keys that nobody sees, are 0 and nothing else.
fn assert_blind_is_zero(got: &Results, shape: &Shape, band: &Visibility<i64>, what: &str) {
    let is_zero = |x: &[f64], row: usize, width: usize| x[row * width..][..width].iter().all(|x| *x == 0.0);
    for i in (0..shape.seqlen_q).filter(|&i| band.keys_of(i as i64).is_empty()) {
        let width = shape.num_heads * shape.head_dim;
        assert!(is_zero(&got.out, i, width) && is_zero(&got.dq, i, width), "row {i}, {what}");
    }
    for j in (0..shape.seqlen_k).filter(|&j| band.queries_of(j as i64).is_empty()) {
        let width = shape.num_heads_k * shape.head_dim;
        assert!(is_zero(&got.dk, j, width) && is_zero(&got.dv, j, width), "key {j}, {what}");
    }
}

fn assert_close(got: &Results, truth: &Results, bound: f64, what: &str) {
    let pairs = [
        ("out", &got.out, &truth.out),
        ("probs", &got.probs, &truth.probs),
        ("dq", &got.dq, &truth.dq),
        ("dk", &got.dk, &truth.dk),
        ("dv", &got.dv, &truth.dv),
    ];
    for (name, got, truth) in pairs {
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let error = norm(&mut got.iter().zip(truth).map(|(a, b)| a - b));
        let all = norm(&mut truth.iter().copied());
        // Of a row that sees one key dq is 0, and what is computed is rounding of numbers near 1: hence the floor.
        assert!(error <= bound * all.max(1.0), "{name} is {error:e} off of {all:e}, {what}");
    }
    let wrong = got.probs.iter().zip(&truth.probs).position(|(got, truth)| (*truth == 0.0) != (*got == 0.0));
    assert_eq!(wrong, None, "probs, {what}");
    for (n, (got, truth)) in got.lse.iter().zip(&truth.lse).enumerate() {
        let near = got == truth || (got - truth).abs() <= bound * truth.abs().max(1.0);
        assert!(near, "lse of row {n} is {got}, not {truth}, {what}");
    }
    let signs = |x: &[f64]| x.iter().map(|x| x.is_sign_negative()).collect::<Vec<bool>>();
    assert_eq!(signs(&got.probs), signs(&truth.probs), "what is dropped, {what}");
}

/// left, right, diagonal.
type Band = (Option<i64>, Option<i64>, i64);

const BANDS: [Band; 12] = [
    (Some(20), Some(5), 30),
    (Some(30), None, 10),
    (None, Some(40), -20),
    (Some(0), Some(3), 3),
    (Some(70), Some(0), 50),
    (Some(7), Some(7), -60),  // the first rows are before all keys
    (Some(10), Some(0), 120), // the last rows are behind all keys
    (Some(3), Some(2), 1000), // nobody sees any
    (None, Some(0), 0),
    (None, Some(0), -37),
    (None, Some(0), 91),
    (None, Some(0), -1000),
];

fn every_band<T: Element>(bound: f64) {
    let shape = Shape::new(1, 150, 203).heads(2, 1).head_dim(24);
    let operands = Operands::<T>::normal(&shape);
    for (n, (left, right, diagonal)) in BANDS.into_iter().enumerate() {
        // Every second with dropout, and with rows before the first of its Philox block.
        let builder = Problem::builder(shape);
        let builder = if n % 2 == 0 {
            let shard = Shard { first_row: 5, first_column: 3, ..Shard::default() };
            builder.dropout(Dropout::new(0.3, 9, 0).expect("p is below 1")).shard(shard)
        } else {
            builder
        };
        let problem = builder.build().expect("a small problem");
        let sequence = Sequences::of(&problem).at(0);
        let visibility = Visibility { left, right, diagonal, ..sequence.visibility };
        let sequence = Sequence { visibility, ..sequence };
        let truth = truth(&problem, &visibility, &operands);
        for isa in emulated_too(T::DTYPE) {
            for two_passes in [false, true] {
                let how = How { isa, tile_rows: 64, two_passes };
                let got = run(how, &problem, &[sequence], &operands);
                let what = format!("{visibility:?}, {how:?}, {}", T::DTYPE);
                assert_close(&got, &truth, bound, &what);
                assert_blind_is_zero(&got, &shape, &visibility, &what);
                let other = run(How { tile_rows: 128, ..how }, &problem, &[sequence], &operands);
                assert_eq!(got, other, "tiles change no bit, {what}");
            }
        }
    }
}

pub fn any_band_is_the_oracles_f32() {
    every_band::<f32>(3e-6);
}

pub fn any_band_is_the_oracles_bf16() {
    every_band::<bf16>(1e-2);
}

/// Lengths of queries and keys: around blocks and tiles, in none of their orders.
const LENGTHS: [(u32, u32); 6] = [(5, 9), (70, 140), (0, 3), (4, 0), (130, 67), (1, 1)];

/// Packed sequences give the bits of each by itself, whatever comes first.
fn side_by_side<T: Element>() {
    let dropout = Dropout::new(0.2, 5, 7).expect("p is below 1");
    let sums = |of: fn(&(u32, u32)) -> u32| -> Vec<u32> {
        (0..=LENGTHS.len()).map(|end| LENGTHS[..end].iter().map(of).sum()).collect()
    };
    let (cu_q, cu_k) = (sums(|pair| pair.0), sums(|pair| pair.1));
    let shape = Shape::new(1, cu_q[6] as usize, cu_k[6] as usize).heads(4, 2).head_dim(40);
    let operands = Operands::<T>::normal(&shape);
    let settings = |shape| Problem::builder(shape).causal(true).dropout(dropout);
    let whole = settings(shape).packed(&cu_q, &cu_k).build().expect("a small problem");
    let probs_shape = whole.probs();
    let mut sequences: Vec<Sequence> = Sequences::of(&whole).iter().collect();
    sequences.reverse();
    for isa in emulated_too(T::DTYPE) {
        for two_passes in [false, true] {
            let how = How { isa, tile_rows: 64, two_passes };
            let all = run(how, &whole, &sequences, &operands);
            for sequence in &sequences {
                let signflash_core::Sequence { first_q, first_k, seqlen_q, seqlen_k, stream, .. } =
                    sequence.place;
                let own = shape.seqlen_q(seqlen_q).seqlen_k(seqlen_k);
                let shard = Shard { first_batch: stream, ..Shard::default() };
                let problem = settings(own).shard(shard).build().expect("a small problem");
                let (q_row, k_row) = (shape.num_heads * shape.head_dim, shape.num_heads_k * shape.head_dim);
                let q_at = first_q * q_row..(first_q + seqlen_q) * q_row;
                let k_at = first_k * k_row..(first_k + seqlen_k) * k_row;
                let part = Operands {
                    q: operands.q[q_at.clone()].to_vec(),
                    k: operands.k[k_at.clone()].to_vec(),
                    v: operands.v[k_at.clone()].to_vec(),
                    dout: operands.dout[q_at.clone()].to_vec(),
                };
                let alone = run(how, &problem, &[Sequences::of(&problem).at(0)], &part);
                let rows = || (0..shape.num_heads).flat_map(|h| (0..seqlen_q).map(move |i| (h, i)));
                let probs_of = |(h, i): (usize, usize)| {
                    let row = (stream * shape.num_heads + h) * probs_shape[2] + i;
                    all.probs[row * probs_shape[3]..][..seqlen_k].to_vec()
                };
                let of_all = Results {
                    out: all.out[q_at.clone()].to_vec(),
                    lse: rows().map(|(h, i)| all.lse[sequence.place.lse(&shape, i, h)]).collect(),
                    probs: rows().flat_map(probs_of).collect(),
                    dq: all.dq[q_at].to_vec(),
                    dk: all.dk[k_at.clone()].to_vec(),
                    dv: all.dv[k_at].to_vec(),
                };
                assert_eq!(of_all, alone, "{sequence:?}, {how:?}, {}", T::DTYPE);
            }
        }
    }
}

pub fn sequences_side_by_side_are_each_by_itself_f32() {
    side_by_side::<f32>();
}

pub fn sequences_side_by_side_are_each_by_itself_bf16() {
    side_by_side::<bf16>();
}

/// Scores that the passes compute of a sequence, and those that its queries see: forward, then backward.
fn computed<S: crate::simd::Simd, const MR: usize>(problem: &Problem) -> [(usize, usize); 2] {
    use crate::call::BLOCK_KEYS;
    use crate::pack::panel_width;
    use crate::visible::{Overlap, Visible, blocks, keys_of_tile};
    let (met, mut forward, mut backward, mut seen) = (AtomicBool::new(false), 0, 0, 0);
    let call = Call::new(problem, Sequences::of(problem), ScoreOperands::default(), &met);
    for sequence in call.sequences.iter() {
        let tiles = |rows: usize| {
            (0..call.tiles(&sequence, rows))
                .map(move |tile| call.tile(&sequence, tile, rows, panel_width::<S>()))
        };
        for tile in tiles(256) {
            for first_key in blocks(keys_of_tile(&sequence, &tile).some) {
                let panels = (0..tile.rows).step_by(panel_width::<S>());
                let visible =
                    panels.filter_map(|lane| Visible::new::<S, MR>(&sequence, &tile, lane, first_key));
                forward += visible.map(|x| (x.keys.end - x.keys.begin) * panel_width::<S>()).sum::<usize>();
            }
        }
        for tile in tiles(TILE_ROWS) {
            for first_key in blocks(keys_of_tile(&sequence, &tile).some) {
                let count = BLOCK_KEYS.min(sequence.place.seqlen_k - first_key);
                if let Some(Overlap { keys, panels }) =
                    Overlap::new::<S>(&sequence, &tile, first_key, count, MR)
                {
                    backward += (keys.end - keys.begin) * (panels.end - panels.begin) * panel_width::<S>();
                }
            }
        }
        let of_query = |i| sequence.visibility.keys_of(i as i64).positions().len();
        seen += (0..sequence.place.seqlen_q).map(of_query).sum::<usize>();
    }
    [(forward, seen), (backward, seen)]
}

pub fn what_nobody_sees_is_not_computed() {
    use crate::simd::portable::Portable;
    let long = Problem::builder(Shape::new(1, 4096, 4096).heads(1, 1).head_dim(1));
    let window = |left, right| long.clone().window(left, right).build().expect("a valid problem");
    // Panels of 8 rows and micro-tiles of 4 keys: a band is widened by a panel and a micro-tile on each side at most,
    // in the backward by a tile of 64 rows.
    for (left, right) in
        [(Some(255), Some(0)), (Some(1000), Some(20)), (Some(0), Some(0)), (Some(64), Some(64))]
    {
        let width = left.unwrap_or(0) + right.unwrap_or(0) + 1;
        for ((computed, seen), rows) in computed::<Portable, 4>(&window(left, right)).into_iter().zip([8, 64])
        {
            assert!(
                computed >= seen && computed <= 4096 * (width + rows + 8),
                "{width}: {computed} of {seen}"
            );
        }
    }
    // Of unequal sequences no more than of each by itself: rows and keys are filled up to whole panels and micro-tiles.
    let lengths = [1u32, 700, 20, 0, 300];
    let cu_seqlens: Vec<u32> = (0..=5).map(|end| lengths[..end].iter().sum()).collect();
    let shape = Shape::new(1, 1021, 1021).heads(1, 1).head_dim(1);
    let packed = Problem::builder(shape).packed(&cu_seqlens, &cu_seqlens).build().expect("a valid problem");
    let whole: usize =
        lengths.iter().map(|&x| x.next_multiple_of(8) as usize * x.next_multiple_of(4) as usize).sum();
    for (computed, seen) in computed::<Portable, 4>(&packed) {
        assert!(computed >= seen && computed <= whole, "{computed} of {seen}, filled up {whole}");
    }
}
