//! What a row comes to once all of its keys were weighed.

/// The logarithm of a row's sum, and the sum itself relative to what its weights are relative to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowEnd {
    pub(crate) lse: f64,
    /// 0 of a row that saw no key, which has no weights that anything could be relative to.
    pub(crate) total: f64,
}

impl RowEnd {
    /// Of weights that sum to `sum` relative to `e^reference`, and of a sink, which is one more score.
    pub(crate) fn of(reference: f64, sum: f64, sink: Option<f64>) -> Self {
        // One of +inf makes a NaN of its row, as any score does.
        let sink = sink.map(|sink| if sink == f64::INFINITY { f64::NAN } else { sink });
        match sink {
            None if sum == 0.0 => Self { lse: f64::NEG_INFINITY, total: 0.0 },
            None => Self { lse: reference + sum.ln(), total: sum },
            Some(sink) if sum == 0.0 => Self { lse: sink, total: 0.0 },
            Some(sink) if sink > reference => {
                let lse = sink + (sum * (reference - sink).exp()).ln_1p();
                Self { lse, total: sum + (sink - reference).exp() }
            }
            Some(sink) => {
                let total = sum + (sink - reference).exp();
                Self { lse: reference + total.ln(), total }
            }
        }
    }
}
