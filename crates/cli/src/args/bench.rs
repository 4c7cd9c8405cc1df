//! `signflash bench`.

use super::EngineArgs;
use super::engine::parse_dtype;
use crate::bench::{JoinAxes, Lengths};
use crate::settings::Axes;
use clap::{Args, ValueEnum};
use signflash_core::Dtype;

pub(super) const LONG: &str = "\
Measure speed and memory.

A row for each combination of the lists. Each is checked on a few rows against the f64 formulas
before it is timed. Operations are counted of what is seen: 4 * heads * head_dim for each entry
(query, key) that neither causality nor a window nor another sequence hides, 2.5 times that for the
backward; what a mask hides counts, and what joins scores does not. `% of peak` is of the multiply-adds that the same threads do in registers with the same
instruction set, measured here. `extra MiB` is what the first call allocated at most, beyond inputs
and results.

--lengths packs sequences of different lengths one behind the other, without padding:
  512             one sequence
  2048x8          eight of 2048
  20..512x64      64, each of a length drawn between 20 and 512
  1..2048/16384   drawn until they have 16384 tokens; the last one is cut
  2048x2+1..64x8  both
--lengths-seed draws others.

--bias and --mask have numbers of their own for some of batch (b), heads (h) and queries (q), and for
each key; the rest share them:
  --bias bf16        (1, heads, seqlen, seqlen), as --bias bf16:hq
  --bias f32:bhq     (batch, heads, seqlen, seqlen)
  --mask b           (batch, 1, 1, seqlen): padding, the second half of the keys is hidden
  --mask q           (1, 1, seqlen, seqlen): a quarter of the entries is hidden, here and there
A backward computes dbias with --dbias, and always dsinks.

On a GPU (--device cuda) tensors stay in its memory, the median is of 20 calls after 5, timed by
events, and `first ms` is the first call's time with compiling or loading its kernels.";

pub(super) const MORE: &str = "\
Examples:
  signflash bench
  signflash bench --seqlen 1024,4096 --causal false,true --dtype f32,bf16 --pass fwd,bwd
  signflash bench --seqlen 32768 --heads 1 --dropout-p 0.1 --pass fwd,bwd --json
  signflash bench --device cuda --dtype bf16 --batch 2 --heads 16 --seqlen 8192 --pass fwd,bwd
  signflash bench --seqlen 16384 --causal --window 255,0 --window 1023,0 --heads 2
  signflash bench --lengths 2048x8,1..2048/16384 --pass fwd,bwd
  signflash bench --alibi false,true --softcap 0,30 --sinks false,true
  signflash bench --bias none,f32,bf16 --dbias --pass fwd,bwd --head-dim 192 --head-dim-v 128";

/// Arguments of `bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// One JSON object a row instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Sizes of a head.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 128])]
    pub head_dim: Vec<usize>,
    /// Sizes of a head of v [default: each as large as that of q].
    #[arg(long, value_delimiter = ',')]
    pub head_dim_v: Vec<usize>,
    /// Numbers of queries and of keys.
    #[arg(long, value_delimiter = ',', default_values_t = [1024, 4096])]
    pub seqlen: Vec<usize>,
    /// Lengths of packed sequences, as above, instead of --seqlen and --batch.
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["seqlen", "batch"])]
    pub lengths: Vec<Lengths>,
    /// What lengths are drawn from.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub lengths_seed: u64,
    /// Settings that are varied.
    #[command(flatten)]
    pub settings: Axes,
    /// What joins scores, varied likewise.
    #[command(flatten)]
    pub joins: JoinAxes,
    /// Element types: f32, f16, bf16.
    #[arg(long, value_delimiter = ',', default_value = "f32", value_parser = parse_dtype)]
    pub dtype: Vec<Dtype>,
    /// Forward (fwd), backward (bwd).
    #[arg(long, value_delimiter = ',', value_enum, default_value = "fwd")]
    pub pass: Vec<Pass>,
    /// Number of sequences.
    #[arg(long, default_value_t = 1)]
    pub batch: usize,
    /// Query heads.
    #[arg(long, default_value_t = 8)]
    pub heads: usize,
    /// Key heads [default: as many as query heads].
    #[arg(long)]
    pub heads_k: Option<usize>,
    /// Timed calls a row, at least; the median counts [default: as many as fit in a second, 3 to 30].
    #[arg(long, value_name = "N")]
    pub reps: Option<usize>,
    /// Calls behind each other that are timed as one, of which each then counts as its share: for calls that take no
    /// longer than starting a clock, or a kernel.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub calls: usize,
    /// Where and how to compute.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Which half of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pass {
    /// out and lse.
    Fwd,
    /// dq, dk, dv.
    Bwd,
}
