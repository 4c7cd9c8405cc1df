//! `signflash attend`.

use super::{EngineArgs, ViewArgs};
use crate::settings::Overrides;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

pub(super) const LONG: &str = "\
Run attention on the tensors of a file.

INPUT holds q, k, v and, for gradients, dout; also dlse, if the loss depends on lse, too:
  q, dout  (batch, num_heads, seqlen_q, head_dim)      f32, f16 or bf16
  k, v     (batch, num_heads_k, seqlen_k, head_dim)    the same; num_heads_k divides num_heads
  dlse     (batch, num_heads, seqlen_q)                f32
v, and with it dout and dv, may have another head_dim than q and k. INPUT may also hold what joins
the scores, in every layout like this:
  bias          (1 or batch, 1 or num_heads, 1 or seqlen_q, seqlen_k)   f32, f16 or bf16: added;
                a key is hidden where it is -inf
  mask          the same shapes, bool or u8: a key is seen where it is not 0
  alibi_slopes  (num_heads) or (batch, num_heads) f32: slope * |i + seqlen_k - seqlen_q - j| less
  sinks         (num_heads) f32: one more score of every row, without a value
With --layout bshd, the second and third dimensions are exchanged. Results keep the layout:
  out, dq, dk, dv   like dout, q, k, v
  dbias, dsinks     like bias and sinks, with dout
  lse               (batch, num_heads, seqlen_q) f32, natural log; -inf where no key is seen
  probs             (batch, num_heads, seqlen_q, seqlen_k), with --probs: probability; its sign
                    bit is set where the entry was dropped

Sequences of different lengths may be packed one behind the other, without padding. Then INPUT also
holds where they begin, and tensors have one dimension less; each sequence attends to itself alone:
  cu_seqlens_q, cu_seqlens_k   (sequences + 1) i32 or i64: from 0 on, each number the end of a
                               sequence; they may be the same, and rows behind the last see nothing
  q, dout, out, dq             (tokens, num_heads, head_dim), the order `thd`; k, v, dk, dv likewise
  lse, dlse                    (num_heads, tokens)
  probs, signbit               (sequences, num_heads, seqlen_q, seqlen_k) of the longest; +0.0 behind
                               the end of a shorter one
  bias, mask                   (1 or sequences, ...) likewise: positions are a sequence's own
Sequence n drops what batch n of a dense file drops. Results hold cu_seqlens_q and cu_seqlens_k, too.

A setting not given here is taken from the file's metadata, else it has its default. Results are
the same to the bit for any number of threads. With --device cuda, f16 and bf16.";

pub(super) const MORE: &str = "\
Files:
  .safetensors  settings are the file's metadata, all text: layout, window, causal, dropout_p,
                seed, offset, softmax_scale, scale_rule, softcap
  .npz          settings are an entry `settings`, a JSON object as text:
                  numpy.savez('in.npz', q=q, k=k, v=v,
                              settings=json.dumps({'dropout_p': 0.1, 'causal': True}))
                numpy has no bf16: store its bits as uint16 and add 'dtype': 'bf16' to the
                settings. Results are written in the same way.
INPUT may be a pipe. The settings of an .npz are ours alone: a name that is none of the above is
an error (`note` holds a remark). The metadata of a .safetensors file is everybody's: there a name
is an error if it is a setting mistyped or in other words (dropout, is_causal), if a tensor is an
operand in other words (attn_mask), or if one asks for what is not computed (block_table); other
names are noted.

What --verify compares:
  ours vs f64     our results with the formulas in f64 on the same rounded inputs. This is the
                  contract: relative Frobenius error at most
                          out    gradients  lse
                    f32   1e-6   3e-6       1e-6
                    f16   4e-4   5e-4       1e-6
                    bf16  3e-3   4e-3       1e-6
                  where scores are ordinary and sums do not cancel. f32's grow with the largest
                  score beyond 8; the error is relative to max(||f64||, ||terms|| / 2), terms
                  being the root of the sum of the squares of what is added up; few numbers may
                  be farther off. The table shows the bound that holds (docs/contract.md). Every
                   sequence must keep twice this bound by itself, or the table names it.
  file vs f64     the tensors that the file holds (out lse dq dk dv dbias dsinks), in the same way:
                  how good the other implementation is. Not judged, but it says who is to blame.
  ours vs file    the two with each other. Each is rounded, so they may differ by the sum of
                  both errors: twice the bound.
  wrong sign bits `signbit` (batch, num_heads, seqlen_q, seqlen_k), u8 or bool, nonzero =
                  dropped, with the sign bits of the probs that the engine really wrote. Only
                  visible entries count. Must be 0.
The f64 side is slow, some seconds a head of seqlen 4096; --verify=file leaves it out, and needs
something in the file to compare with. Results are written even if the verification fails.

Examples:
  signflash attend in.safetensors
  signflash attend in.npz -o out.npz --causal --dropout-p 0.1 --seed 42 --probs
  signflash attend in.safetensors --window 255,0
  signflash attend reference.safetensors --verify --plot map.png --head 1";

/// Arguments of `attend`.
#[derive(Args, Debug)]
pub struct AttendArgs {
    /// The file that holds q, k, v [.safetensors, .npz].
    pub input: PathBuf,
    /// Where to write the results [.safetensors, .npz]; links are followed, permissions of an older file are kept.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Settings.
    #[command(flatten)]
    pub settings: Overrides,
    /// Write the sign-encoded probabilities as well: seqlen_q x seqlen_k a head.
    #[arg(long)]
    pub probs: bool,
    /// Compare with the formulas in f64 and with the results that INPUT holds; exit 1 beyond the bounds.
    #[arg(long, value_name = "AGAINST", num_args = 0..=1, require_equals = true, default_missing_value = "both")]
    pub verify: Option<Against>,
    /// Draw the attention map of one head [.png].
    #[arg(long, value_name = "PICTURE")]
    pub plot: Option<PathBuf>,
    /// What to draw with --plot.
    #[command(flatten)]
    pub view: ViewArgs,
    /// Where and how to compute.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// What `--verify` compares with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Against {
    /// The formulas in f64 and the file's own results.
    Both,
    /// Only the file's own results.
    File,
}
