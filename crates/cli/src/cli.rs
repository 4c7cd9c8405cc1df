//! The command line.

use crate::settings::{Layout, Overrides};
use clap::{Args, Parser, Subcommand, ValueEnum};
use signflash_core::{Dtype, ScaleRule};
use std::path::PathBuf;

/// The commit that was built.
pub const COMMIT: &str = env!("SIGNFLASH_COMMIT");
/// Version and commit.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("SIGNFLASH_COMMIT"), ")");

const ABOUT: &str = "\
Exact attention whose dropout mask lives in the sign bit of the probabilities.

A softmax is never negative, so its sign bit is free: signflash lets it say \"dropped\". One
tensor then says how probable an entry is and whether it was dropped, and no dropout mask is
stored: it is a function of (seed, offset, position), FlashAttention-2's bit for bit.";

const EXAMPLES: &str = "\
Examples:
  signflash attend in.safetensors -o out.safetensors --dropout-p 0.1 --seed 42 --probs
  signflash attend reference.safetensors --verify --plot map.png
  signflash plot out.safetensors --head 3 -o head3.png
  signflash dropout-mask --seqlen-q 4096 --seqlen-k 4096 --heads 8 -p 0.1 --seed 42 -o keep.npy
  signflash bench --seqlen 1024,4096 --dropout-p 0,0.1 --pass fwd,bwd

Exit codes:
  0    done
  1    a result is beyond its bounds (attend --verify, bench)
  2    bad usage or a bad file: the message says what was expected
  3    the system refused to read or write
  4    not enough memory, or threads, within the limits of machine, container and ulimit
  5    no GPU, or its driver refused
  101  internal error, please report it
  128 and more, as shells say it: a signal ended it (130: Ctrl-C)

Files are written whole or not at all, before anything is printed: whatever ends a run, an older
file stays, and nothing half written does. A reader that goes away (| head) is no failure.";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "signflash", version = VERSION, about = ABOUT, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// No progress and no notes; results and errors only.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run attention on the tensors of a file.
    #[command(allow_negative_numbers = true, long_about = ATTEND, after_long_help = ATTEND_MORE)]
    Attend(Box<AttendArgs>),
    /// Write a dropout mask, and count it.
    #[command(
        visible_alias = "mask",
        allow_negative_numbers = true,
        long_about = DROPOUT_MASK,
        after_long_help = DROPOUT_MASK_MORE
    )]
    DropoutMask(DropoutMaskArgs),
    /// Draw the attention map of a head.
    #[command(allow_negative_numbers = true, long_about = PLOT, after_long_help = PLOT_MORE)]
    Plot(PlotArgs),
    /// Measure speed and memory.
    #[command(allow_negative_numbers = true, long_about = BENCH, after_long_help = BENCH_MORE)]
    Bench(Box<BenchArgs>),
    /// Show what this machine offers.
    Info(InfoArgs),
    /// Show which kernels a GPU gets for a problem, or print one as PTX.
    #[command(long_about = KERNELS)]
    Kernels(KernelsArgs),
}

const KERNELS: &str = "\
Show which kernels a GPU gets for a problem, or print one as PTX. No GPU is needed.

A kernel's name says what was chosen, and below the table it is said in words: the format, the padded
head_dim, what becomes of scores, and the form of its blocks; and where Hopper's own kernels do not
compute a problem, why. docs/gpu.md, docs/hopper.md and docs/hopper-backward.md tell more.";

/// Arguments of `kernels`.
#[derive(Args, Debug)]
pub struct KernelsArgs {
    /// Sizes of a head.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 128])]
    pub head_dim: Vec<usize>,
    /// f16 or bf16.
    #[arg(long, default_value = "bf16", value_parser = parse_dtype)]
    pub dtype: Dtype,
    /// Whether later keys are hidden.
    #[arg(long)]
    pub causal: bool,
    /// Probability of dropping, in [0, 1).
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub dropout_p: f32,
    /// The GPU.
    #[arg(long, value_enum, default_value = "hopper")]
    pub gpu: GpuKind,
    /// Print this kernel of the first head_dim as PTX instead of the table.
    #[arg(long, value_enum, value_name = "PASS")]
    pub ptx: Option<KernelPass>,
}

/// GPUs that have tables of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GpuKind {
    /// H100, H200: 227 KiB of shared memory a block.
    Hopper,
    /// A100: 163 KiB.
    Ampere,
    /// Compute capability 8.6, 8.9, 12.0: 99 KiB.
    Small,
}

/// The kernels of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KernelPass {
    /// out and lse.
    Forward,
    /// The same, for tensors that the GPU's own kernel does not take.
    PortableForward,
    /// The sign-encoded probabilities.
    Probs,
    /// Statistics of rows.
    Delta,
    /// dk and dv, and sums of dq.
    Keys,
    /// The same of a deterministic backward; without sums of dq where there is a pass over queries for it.
    KeysDeterministic,
    /// dq from its sums.
    ConvertDq,
    /// dk and dv, and sums of dq, for tensors that the GPU's own kernel does not take.
    PortableKeys,
    /// dq from the sums of those.
    PortableConvertDq,
    /// dk and dv alone, of a deterministic backward.
    PortableKeysDeterministic,
    /// dq of a deterministic backward.
    PortableQueries,
}

impl KernelPass {
    /// As `--ptx` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::PortableForward => "portable-forward",
            Self::Probs => "probs",
            Self::Delta => "delta",
            Self::Keys => "keys",
            Self::KeysDeterministic => "keys-deterministic",
            Self::ConvertDq => "convert-dq",
            Self::PortableKeys => "portable-keys",
            Self::PortableConvertDq => "portable-convert-dq",
            Self::PortableKeysDeterministic => "portable-keys-deterministic",
            Self::PortableQueries => "portable-queries",
        }
    }
}

const ATTEND: &str = "\
Run attention on the tensors of a file.

INPUT holds q, k, v and, for gradients, dout; also dlse, if the loss depends on lse, too:
  q, dout  (batch, num_heads, seqlen_q, head_dim)      f32, f16 or bf16
  k, v     (batch, num_heads_k, seqlen_k, head_dim)    the same; num_heads_k divides num_heads
  dlse     (batch, num_heads, seqlen_q)                f32
With --layout bshd, the second and third dimensions are exchanged. Results keep the layout:
  out, dq, dk, dv   like q, q, k, v
  lse               (batch, num_heads, seqlen_q) f32, natural log; -inf where no key is seen
  probs             (batch, num_heads, seqlen_q, seqlen_k), with --probs: probability; its sign
                    bit is set where the entry was dropped

A setting not given here is taken from the file's metadata, else it has its default. Results are
the same to the bit for any number of threads. With --device cuda, f16 and bf16.";

const ATTEND_MORE: &str = "\
Files:
  .safetensors  settings are the file's metadata, all text: layout, causal, dropout_p, seed,
                offset, softmax_scale, scale_rule
  .npz          settings are an entry `settings`, a JSON object as text:
                  numpy.savez('in.npz', q=q, k=k, v=v,
                              settings=json.dumps({'dropout_p': 0.1, 'causal': True}))
                numpy has no bf16: store its bits as uint16 and add 'dtype': 'bf16' to the
                settings. Results are written in the same way.
INPUT may be a pipe. The settings of an .npz are ours alone: a name that is none of the above is
an error (`note` holds a remark). The metadata of a .safetensors file is everybody's: there a name
is an error if it is a setting mistyped or in other words (dropout, is_causal), or if it, or a
tensor, asks for what is not computed (window, softcap, bias, attn_mask); other names are noted.

What --verify compares:
  ours vs f64     our results with the formulas in f64 on the same rounded inputs. This is the
                  contract: relative Frobenius error at most
                          out    dq dk dv   lse
                    f32   1e-6   3e-6       1e-6
                    f16   4e-4   5e-4       1e-6
                    bf16  3e-3   4e-3       1e-6
                  where scores are ordinary and sums do not cancel. f32's grow with the largest
                  score beyond 8; the error is relative to max(||f64||, ||terms|| / 2), terms
                  being the root of the sum of the squares of what is added up; few numbers may
                  be farther off. The table shows the bound that holds (docs/contract.md).
  file vs f64     the tensors that the file holds (out lse dq dk dv), in the same way: how good
                  the other implementation is. Not judged, but it says who is to blame.
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
    pub settings: SettingArgs,
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

/// Settings of the problem; each defaults to the file's metadata.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Settings (default: the file's, else as said)")]
pub struct SettingArgs {
    /// Order of dimensions in the file: (batch, heads, seqlen, dim) or (batch, seqlen, heads, dim) [default: bhsd].
    #[arg(long, value_enum)]
    pub layout: Option<Layout>,
    /// Query i sees only keys j <= i + seqlen_k - seqlen_q [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub causal: Option<bool>,
    /// Probability of dropping, in [0, 1) [default: 0].
    #[arg(long, value_name = "P")]
    pub dropout_p: Option<f32>,
    /// Random seed [default: 0].
    #[arg(long)]
    pub seed: Option<u64>,
    /// Random offset; add batch * num_heads * 32 after each call to drop other entries [default: 0].
    #[arg(long)]
    pub offset: Option<u64>,
    /// By what kept probabilities are multiplied: `unbiased` 256 / (threshold + 1), exact in expectation, or `nominal`
    /// 1 / (1 - p), as FlashAttention-2 and PyTorch [default: unbiased].
    #[arg(long, value_name = "RULE", value_parser = parse_scale_rule)]
    pub scale_rule: Option<ScaleRule>,
    /// Factor of the scores [default: 1 / sqrt(head_dim)].
    #[arg(long, value_name = "X")]
    pub softmax_scale: Option<f64>,
}

impl SettingArgs {
    /// As the settings that they override.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            layout: self.layout,
            causal: self.causal,
            dropout_p: self.dropout_p,
            seed: self.seed,
            offset: self.offset,
            scale_rule: self.scale_rule,
            softmax_scale: self.softmax_scale,
        }
    }
}

fn parse_scale_rule(text: &str) -> Result<ScaleRule, String> {
    crate::settings::scale_rule(text).ok_or_else(|| "expected unbiased or nominal".to_string())
}

/// Where and how to compute.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Where to compute")]
pub struct EngineArgs {
    /// The device: cpu, cuda or cuda:N; `signflash info` lists those there are.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// The same gradients to the bit in every run, on a GPU a tenth to a half slower; the CPU's always are.
    #[arg(long)]
    pub deterministic: bool,
    /// On a GPU the kernels that every one since Ampere runs, even where it has faster ones of its own.
    #[arg(long)]
    pub portable_kernels: bool,
    /// Instruction set [default: the fastest; `signflash info` lists them].
    #[arg(long)]
    pub isa: Option<String>,
    /// Number of threads [default: RAYON_NUM_THREADS, else all cores].
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// Which head to draw and how.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "What to draw")]
pub struct ViewArgs {
    /// Query head.
    #[arg(long, default_value_t = 0)]
    pub head: usize,
    /// Batch.
    #[arg(long, default_value_t = 0)]
    pub batch: usize,
    /// Only queries FROM..TO.
    #[arg(long, value_name = "FROM..TO", value_parser = parse_range)]
    pub queries: Option<(usize, usize)>,
    /// Only keys FROM..TO.
    #[arg(long, value_name = "FROM..TO", value_parser = parse_range)]
    pub keys: Option<(usize, usize)>,
    /// What a square shows if it covers several entries.
    #[arg(long, value_enum, default_value = "mean")]
    pub bin: Bin,
}

/// What a square shows of the magnitudes that it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bin {
    /// Their mean over the visible entries.
    Mean,
    /// The largest.
    Max,
}

fn parse_range(text: &str) -> Result<(usize, usize), String> {
    let bad = || "expected FROM..TO with FROM < TO, for example 0..128".to_string();
    let (from, to) = text.split_once("..").ok_or_else(bad)?;
    let (from, to) = (from.trim().parse().map_err(|_| bad())?, to.trim().parse().map_err(|_| bad())?);
    if from < to { Ok((from, to)) } else { Err(bad()) }
}

const DROPOUT_MASK: &str = "\
Write a dropout mask, and count it.

It is a function of (seed, offset, batch, head, row, column) alone, FlashAttention-2's bit
for bit. It is computed block by block, so any size fits in memory. Statistics go to stdout: the
kept fraction, its exact expectation (threshold + 1) / 256 with threshold = floor(255 * (1 - p)),
and how many standard deviations lie between (z).";

const DROPOUT_MASK_MORE: &str = "\
Files:
  .npy   bool (batch, heads, seqlen_q, seqlen_k), True = kept
  .bits  the same entries in the same order, a bit each, 1 = kept, least significant bit first,
         without gaps: numpy.unpackbits(numpy.fromfile(FILE, 'u1'), bitorder='little')

Example:
  signflash dropout-mask --heads 3 --seqlen-q 256 --seqlen-k 256 -p 0.1 --seed 123 -o keep.npy";

/// Arguments of `dropout-mask`.
#[derive(Args, Debug)]
pub struct DropoutMaskArgs {
    /// Number of sequences.
    #[arg(long, default_value_t = 1)]
    pub batch: usize,
    /// Number of query heads.
    #[arg(long, default_value_t = 1)]
    pub heads: usize,
    /// Number of rows.
    #[arg(long)]
    pub seqlen_q: usize,
    /// Number of columns.
    #[arg(long)]
    pub seqlen_k: usize,
    /// Probability of dropping, in [0, 1).
    #[arg(long, short = 'p', value_name = "P")]
    pub dropout_p: f32,
    /// Random seed.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Random offset.
    #[arg(long, default_value_t = 0)]
    pub offset: u64,
    /// Where to write it [.npy, .bits]; without it, only the statistics are printed.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Number of threads [default: RAYON_NUM_THREADS, else all cores].
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

const PLOT: &str = "\
Draw the attention map of a head.

FILE is what `attend --probs` wrote. Rows are queries, columns are keys. Brightness is the
probability, on the logarithmic scale that the legend shows: it ends at the largest, and what is
darkest holds one part in a thousand of all probability, or less. Dropped entries have another
hue, NaN has a color of its own. If the map has more entries than the picture has room for, each
square covers a block of them, and the title says how many. Then --bin mean shows how much
probability lies in the block and how much of that was dropped, --bin max the largest entry and
whether it was dropped; a NaN is shown in either case. Cells of maps longer than 3 to 1 are
rectangles. Nothing is cut off unless --queries or --keys say so.";

const PLOT_MORE: &str = "\
Examples:
  signflash attend in.safetensors --probs -o out.safetensors
  signflash plot out.safetensors --head 1 -o head1.png
  signflash plot out.safetensors --queries 0..64 --keys 0..64 -o corner.png
`attend --plot` draws without storing the probabilities.";

/// Arguments of `plot`.
#[derive(Args, Debug)]
pub struct PlotArgs {
    /// The file that holds probs [.safetensors, .npz].
    pub file: PathBuf,
    /// The picture [.png].
    #[arg(long, short, value_name = "PICTURE")]
    pub output: PathBuf,
    /// What to draw.
    #[command(flatten)]
    pub view: ViewArgs,
}

const BENCH: &str = "\
Measure speed and memory.

A row for each combination of the lists. Each is checked on a few rows against the f64 formulas
before it is timed. Operations are counted as the field does: 4 * batch * heads * seqlen^2 *
head_dim for the forward, half of it if causal, 2.5 times for the backward. `% of peak` is of the
multiply-adds that the same threads do in registers with the same instruction set, measured here.
`extra MiB` is what the first call allocated at most, beyond inputs and results.

On a GPU (--device cuda) tensors stay in its memory, the median is of 20 calls after 5, timed by
events, and `first ms` is the first call's time with compiling or loading its kernels.";

const BENCH_MORE: &str = "\
Examples:
  signflash bench
  signflash bench --seqlen 1024,4096 --causal false,true --dtype f32,bf16 --pass fwd,bwd
  signflash bench --seqlen 32768 --heads 1 --dropout-p 0.1 --pass fwd,bwd --json
  signflash bench --device cuda --dtype bf16 --batch 2 --heads 16 --seqlen 8192 --pass fwd,bwd";

/// Arguments of `bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// One JSON object a row instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Sizes of a head.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 128])]
    pub head_dim: Vec<usize>,
    /// Numbers of queries and of keys.
    #[arg(long, value_delimiter = ',', default_values_t = [1024, 4096])]
    pub seqlen: Vec<usize>,
    /// Whether later keys are hidden.
    #[arg(long, value_delimiter = ',', num_args = 0..=1, default_values_t = [false], default_missing_value = "true")]
    pub causal: Vec<bool>,
    /// Probabilities of dropping.
    #[arg(long, value_delimiter = ',', default_values_t = [0.0, 0.1])]
    pub dropout_p: Vec<f32>,
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

/// Arguments of `info`.
#[derive(Args, Debug)]
pub struct InfoArgs {
    /// A GPU, cuda or cuda:N: also which kernels its forwards and backwards get, and why.
    #[arg(long)]
    pub device: Option<String>,
}

/// Which half of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pass {
    /// out and lse.
    Fwd,
    /// dq, dk, dv.
    Bwd,
}

fn parse_dtype(text: &str) -> Result<Dtype, String> {
    match text {
        "f32" => Ok(Dtype::F32),
        "f16" => Ok(Dtype::F16),
        "bf16" => Ok(Dtype::Bf16),
        _ => Err("expected f32, f16 or bf16".to_string()),
    }
}
