//! The gradient of sinks, which are one more score of every row and have no value.
//!
//! ```text
//! dsink[h] = -sum_i exp(sink[h] - lse[i]) (<dout[i], out[i]> - dlse[i])
//! ```

use crate::backward::Backward;
use crate::pack;
use crate::references::is_large;
use crate::schedule;
use crate::sequence::Sequences;
use crate::simd::portable::Portable;
use crate::team::Crew;
use crate::view::{FloatsMut, View};
use std::f64::consts::LN_2;

/// All heads', each summed in the order of its rows. Beside attention's quadratic work it is nothing.
pub(crate) fn run_sinks(backward: &Backward<'_>, dsinks: &FloatsMut<'_>, crew: Crew) {
    let heads = backward.call.problem.shape().num_heads;
    schedule::run(
        crew,
        heads,
        || (),
        |(), head| {
            // SAFETY: there is one for each head, as the checks of the operands proved, and `run` hands out a head once.
            unsafe { *dsinks.at(head) = of_head(backward, head) as f32 }
        },
    );
}

fn of_head(backward: &Backward<'_>, head: usize) -> f64 {
    let call = &backward.call;
    let dim = call.problem.shape().head_dim_v;
    let (mut dout, mut out, mut sum) = (vec![0.0f32; dim], vec![0.0f32; dim], 0.0);
    for sequence in Sequences::of(call.problem).iter() {
        let Some(sink) = call.sink(&sequence, head) else { continue };
        let first = call.first_row(&sequence, head);
        for row in 0..sequence.place.seqlen_q {
            let p = probability(backward, sink, first + row);
            if p == 0.0 {
                continue; // whatever its gradient is
            }
            let index = sequence.query(row, head);
            load(&backward.dout, index, &mut dout);
            load(&backward.out, index, &mut out);
            let delta: f64 = dout.iter().zip(&out).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let dlse = backward.dlse.map_or(0.0, |dlse| f64::from(dlse[first + row]));
            sum -= p * (delta - dlse);
        }
    }
    sum
}

/// Of a row's sink, relative to its lse, or to what its weights are relative to where that is large.
fn probability(backward: &Backward<'_>, sink: f64, row: usize) -> f64 {
    let lse = backward.lse[row];
    match backward.references {
        _ if lse == f32::NEG_INFINITY => 0.0,
        Some(references) if is_large(lse) => {
            let base = backward.call.stage.natural(references.base[row]);
            (sink - base + f64::from(references.shift[row]) * LN_2).exp()
        }
        _ => (sink - f64::from(lse)).exp(),
    }
}

fn load(x: &View<'_>, index: [usize; 3], to: &mut [f32]) {
    // SAFETY: the row lies in the tensor, whose last size is this many, as the checks of the operands proved; plain Rust
    // needs no instruction set.
    unsafe { pack::load_row::<Portable>(x.dtype, x.row(index), to.len(), to.as_mut_ptr()) }
}
