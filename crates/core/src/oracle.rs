//! Attention in f64, written like the formulas: slow, and right.
