//! The kernels of a call: chosen once, with the reason wherever they are not the GPU's own; `plan.rs` launches them.
use crate::call::{BackwardCall, ForwardCall};
use crate::config::{
    Access, BandKind, Common, Config, DbiasKernel, DeltaRows, DqKernel, DqSums, ForwardKernel, HeadDims,
    HopperCommon, HopperForm, HopperKeysForm, KeysKernel, Layout, Operands, OverlayKind, Overlays,
    PortableForm, RowsCommon, ScoreKind, Scores, Stored,
};
use crate::geometry::column_shift;
use crate::gpu::Gpu;
use crate::overlays::{boxed_bias, numbers_of};
use crate::padding;
use crate::scores::{DeviceScoreTensor, DeviceScores};
use crate::sm90;
use crate::tables::{hopper, portable};
use crate::takes::{self, NotHopper};
use crate::tensor::DeviceTensor;
use crate::workspace::Workspace;
use signflash_core::Problem;
use signflash_ptx::Half;

/// Which kernels a call may get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kernels {
    /// The GPU's own where there are such and they take the call, else the portable ones.
    #[default]
    Best,
    /// Those that every GPU since Ampere runs.
    Portable,
}

/// The kernels of a forward.
///
/// ```
/// use signflash_core::{Problem, Shape};
/// use signflash_kernels::{ForwardCall, ForwardChoice, Gpu, Half, Kernels};
/// let shape = Shape::new(1, 64, 64).heads(1, 1).head_dim(41);
/// let problem = Problem::builder(shape).build()?;
/// let call = ForwardCall::of_dense(&problem, Half::Bf16);
/// let choice = ForwardChoice::of(&call, Gpu::HOPPER, Kernels::Best);
/// assert!(!choice.forward().is_hopper());
/// let why = choice.not_hopper().unwrap().to_string();
/// assert_eq!(why, "head_dim is 41, and rows are written in pieces of 8");
/// # Ok::<(), signflash_core::ProblemError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ForwardChoice<'a> {
    pub(crate) call: &'a ForwardCall<'a>,
    pub(crate) gpu: Gpu,
    pub(crate) forward: ForwardKernel,
    /// Who writes them, and where, if they are asked for.
    pub(crate) probs: Option<(ForwardKernel, DeviceTensor)>,
    not_hopper: Option<NotHopper>,
    probs_not_hopper: Option<NotHopper>,
}

impl<'a> ForwardChoice<'a> {
    /// The tables' choice for a call on a GPU.
    pub fn of(call: &'a ForwardCall<'a>, gpu: Gpu, kernels: Kernels) -> Self {
        let ForwardCall { problem, half, stored, q, k, v, .. } = *call;
        let common = common(problem, (half, stored), &[q, k, v, call.out_in_halves()], &call.scores);
        let own = allowed(gpu, kernels).and_then(|()| takes::forward(call)).and_then(|()| {
            let read = common.hopper();
            let boxed = boxed_bias(problem, &call.scores).map(|_| read.boxed());
            let mut forms = boxed.into_iter().chain([read]).filter_map(|common| {
                hopper::forward(&common, keys_of_a_sequence(problem), gpu).map(|form| (common, form))
            });
            let none = || NotHopper::Call("no form of its kernel fits the GPU's shared memory".into());
            forms.next().ok_or_else(none)
        });
        let (forward, not_hopper) = match own {
            Ok((common, form)) => (ForwardKernel::Hopper(common, form), None),
            Err(reason) => {
                (ForwardKernel::Portable(common, portable::Asked::of(problem, gpu).forward()), Some(reason))
            }
        };
        let mut choice =
            ForwardChoice { call, gpu, forward, probs: None, not_hopper, probs_not_hopper: None };
        if let Some(probs) = call.probs {
            choice.choose_probs(common.with_lse(), probs);
        }
        choice
    }

    fn choose_probs(&mut self, common: Common, probs: DeviceTensor) {
        let taken = match &self.not_hopper {
            Some(reason) => Err(reason.clone()),
            None => takes::probs(self.call.problem, probs),
        };
        // They do not depend on v.
        let common = common.without_v().without_results();
        let kernel = match taken {
            Ok(()) => ForwardKernel::Hopper(common.hopper(), hopper::probs(&common.hopper())),
            Err(_) => {
                ForwardKernel::Portable(common, portable::Asked::of(self.call.problem, self.gpu).probs())
            }
        };
        self.probs = Some((kernel, probs));
        self.probs_not_hopper = taken.err();
    }

    /// Who computes out and lse.
    pub fn forward(&self) -> ForwardKernel {
        self.forward
    }

    /// Who writes probs, if they are asked for.
    pub fn probs(&self) -> Option<ForwardKernel> {
        self.probs.map(|(kernel, _)| kernel)
    }

    /// Why Hopper's own kernel does not compute out and lse, if it does not.
    pub fn not_hopper(&self) -> Option<&NotHopper> {
        self.not_hopper.as_ref()
    }

    /// Why Hopper's own kernel does not write probs, if somebody else does.
    pub fn probs_not_hopper(&self) -> Option<&NotHopper> {
        self.probs_not_hopper.as_ref()
    }

    /// The kernels in the order of their launches.
    pub fn kernels(&self) -> impl Iterator<Item = Config> {
        let scores = [Config::Forward(self.forward)].into_iter().chain(self.probs().map(Config::Probs));
        before(self.call.problem).chain(scores)
    }

    /// The portable kernel in another form than the table's: to find better ones.
    pub fn with_portable_form(self, form: PortableForm) -> Self {
        let mut choice = Self::of(self.call, self.gpu, Kernels::Portable);
        if let ForwardKernel::Portable(_, of) = &mut choice.forward {
            *of = form;
        }
        choice
    }

    /// Hopper's own kernel in another form than the table's: to find better ones.
    ///
    /// # Errors
    /// Why Hopper's own kernel does not compute the call.
    pub fn with_hopper_form(mut self, form: HopperForm) -> Result<Self, NotHopper> {
        match (&mut self.forward, &self.not_hopper) {
            (_, Some(reason)) => return Err(reason.clone()),
            (ForwardKernel::Hopper(_, of), None) => *of = form,
            (ForwardKernel::Portable(..), None) => return Err(NotHopper::NotWanted),
        }
        Ok(self)
    }
}

/// The kernels of a backward.
#[derive(Clone, Debug)]
pub struct BackwardChoice<'a> {
    pub(crate) call: &'a BackwardCall<'a>,
    pub(crate) gpu: Gpu,
    pub(crate) delta: (Half, Layout, DeltaRows),
    pub(crate) keys: KeysKernel,
    pub(crate) dq: DqKernel,
    /// Who computes dbias, and where it goes, if it is asked for.
    pub(crate) dbias: Option<(Config, DeviceScoreTensor)>,
    pub(crate) workspace: Workspace,
    not_hopper: Option<NotHopper>,
}

impl<'a> BackwardChoice<'a> {
    /// The tables' choice for a call on a GPU.
    pub fn of(call: &'a BackwardCall<'a>, gpu: Gpu, kernels: Kernels) -> Self {
        let BackwardCall { problem, half, stored, q, k, v, out, dout, deterministic, .. } = *call;
        let [dq, dk, dv] = call.gradients_in_halves();
        let tensors = [q, k, v, out, dout, dq, dk, dv];
        let common = common(problem, (half, stored[1]), &tensors, &call.scores).with_lse();
        let own = allowed(gpu, kernels).and_then(|()| takes::backward(call));
        let (keys, dq) = match own {
            Ok(()) => {
                let common = hopper::keys_common(&common);
                let boxed =
                    common.operands.dims().max() <= 128 && boxed_bias(problem, &call.scores).is_some();
                let common = if boxed { common.boxed() } else { common };
                let (Scores { kind, dropout, overlays, .. }, walk) =
                    (common.scores, hopper::Walk::of(problem));
                let (dims, own) = (common.operands.dims(), (kind.product, overlays.are_by_query(), boxed));
                let form = hopper::keys(dims, own, (dropout, deterministic), walk);
                own_kernels(HopperCommon { scores: common.scores.by_keys(), ..common }, form, stored[0])
            }
            Err(_) => {
                let asked = portable::Asked::of(problem, gpu);
                portable_kernels((common, stored[0]), asked, asked.keys(), deterministic)
            }
        };
        BackwardChoice {
            call,
            gpu,
            delta: (half, common.operands.layout, DeltaRows::of(common.rows_v())),
            keys,
            dq,
            dbias: call.dbias.and_then(|dbias| {
                let boxed = boxed_bias(problem, &call.scores).is_some() && problem.mask().is_none();
                let own = own.is_ok() && boxed;
                Some((dbias_kernel(problem, (common, own), dbias, gpu)?, dbias))
            }),
            workspace: Workspace::plan(problem, gpu, deterministic),
            not_hopper: own.err(),
        }
    }

    /// Who computes the statistics of rows.
    pub fn delta(&self) -> Config {
        let (half, layout, rows) = self.delta;
        Config::Delta(half, layout, rows)
    }

    /// Who computes dk, dv and perhaps sums of dq.
    pub fn keys(&self) -> KeysKernel {
        self.keys
    }

    /// Who computes dq.
    pub fn dq(&self) -> DqKernel {
        self.dq
    }

    /// Who computes dbias, if it is asked for.
    pub fn dbias(&self) -> Option<Config> {
        self.dbias.map(|(kernel, _)| kernel)
    }

    /// Why Hopper's own kernel does not compute it, if it does not.
    pub fn not_hopper(&self) -> Option<&NotHopper> {
        self.not_hopper.as_ref()
    }

    /// The kernels in the order of their launches.
    pub fn kernels(&self) -> impl Iterator<Item = Config> {
        let dbias = self.dbias();
        let dsinks = self.call.dsinks.map(|_| Config::Dsinks);
        before(self.call.problem)
            .chain([self.delta()])
            .chain(dsinks)
            .chain([Config::Keys(self.keys), Config::Dq(self.dq)])
            .chain(dbias)
    }

    /// The portable pass over keys in another form than the table's: to find better ones.
    ///
    /// # Errors
    /// That the call's workspace would not suffice.
    pub fn with_portable_form(self, form: PortableForm) -> Result<Self, NotEnoughWorkspace> {
        let mut choice = Self::of(self.call, self.gpu, Kernels::Portable);
        if let KeysKernel::Portable(common, ..) = choice.keys {
            let asked = portable::Asked::of(choice.call.problem, choice.gpu);
            (choice.keys, choice.dq) =
                portable_kernels((common, choice.call.stored[0]), asked, form, choice.call.deterministic);
        }
        choice.fits_its_workspace()
    }

    /// Hopper's own pass over keys in another form than the table's: to find better ones. Whether it adds in order is
    /// the call's to say.
    ///
    /// # Errors
    /// Why Hopper's own kernel does not compute the call, or that the call's workspace would not suffice.
    pub fn with_hopper_form(mut self, form: HopperKeysForm) -> Result<Self, NotHopper> {
        match (self.keys, &self.not_hopper) {
            (KeysKernel::Hopper(common, _), None) => {
                let form = HopperKeysForm { ordered: self.call.deterministic, ..form };
                (self.keys, self.dq) = own_kernels(common, form, self.call.stored[0]);
            }
            (_, reason) => return Err(reason.clone().unwrap_or(NotHopper::NotWanted)),
        }
        self.fits_its_workspace().map_err(|error| NotHopper::Call(error.to_string()))
    }

    fn fits_its_workspace(self) -> Result<Self, NotEnoughWorkspace> {
        let missing_bytes = self.workspace.missing(self.call.problem, &self.keys, &self.dq);
        if missing_bytes > 0 { Err(NotEnoughWorkspace { missing_bytes }) } else { Ok(self) }
    }
}

/// A form needs a larger workspace than calls have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this form needs {missing_bytes} bytes more of workspace than calls have; choose as many queries a step as the table"
)]
pub struct NotEnoughWorkspace {
    /// How many bytes more.
    pub missing_bytes: u64,
}

/// Keys of a sequence: of packed ones, of whose lengths nothing is known but their sum, on average.
fn keys_of_a_sequence(problem: &Problem) -> usize {
    let seqlen_k = problem.shape().seqlen_k;
    if problem.is_packed() { seqlen_k.div_ceil(problem.sequence_count().max(1)) } else { seqlen_k }
}

/// Who comes before all others: who lists the tiles of packed sequences, and finds the keys that a mask leaves.
fn before(problem: &Problem) -> impl Iterator<Item = Config> + use<> {
    [problem.is_packed().then_some(Config::Tiles), padding::ranges(problem)].into_iter().flatten()
}

/// Hopper's pass over keys, and dq from its sums, whose rows are padded to whole boxes.
fn own_kernels(common: HopperCommon, form: HopperKeysForm, dq: Stored) -> (KeysKernel, DqKernel) {
    let operands = common.operands.without_v().of_sums(dq);
    let rows = RowsCommon { operands, access: Access::Pieces };
    (KeysKernel::Hopper(common, form), DqKernel::FromSums(rows, form.step, DqSums::Wide))
}

/// The portable pass over keys in a form, and who computes dq then.
fn portable_kernels(
    (common, dq): (Common, Stored),
    asked: portable::Asked,
    form: PortableForm,
    deterministic: bool,
) -> (KeysKernel, DqKernel) {
    let sums = match (deterministic, asked.gpu.adds_four_floats()) {
        (true, _) => DqSums::None,
        (false, true) => DqSums::Wide,
        (false, false) => DqSums::Narrow,
    };
    let dq = match sums {
        DqSums::None => DqKernel::Queries(common.storing(dq), asked.queries()),
        _ => {
            let rows = common.rows();
            let rows = RowsCommon { operands: rows.operands.of_sums(dq), ..rows };
            DqKernel::FromSums(rows, form.step, sums)
        }
    };
    // Without sums there is nothing to add later.
    let form = PortableForm { late_dq: form.late_dq && sums != DqSums::None, ..form };
    (KeysKernel::Portable(Common { scores: common.scores.by_keys(), ..common }, form, sums), dq)
}

/// Who computes the gradient of a problem's bias, if it has one.
fn dbias_kernel(
    problem: &Problem,
    (common, own): (Common, bool),
    dbias: DeviceScoreTensor,
    gpu: Gpu,
) -> Option<Config> {
    let bias = problem.bias()?;
    let written = OverlayKind::of(numbers_of(bias.dtype), bias.shape, dbias, column_shift(problem));
    let form = portable::Asked::of(problem, gpu).dbias();
    let common = common.without_results();
    let pairs = written.pairs && !written.per_key;
    if own && pairs && common.operands.dims().max() <= sm90::dbias::MOST_COLUMNS {
        return Some(Config::OwnDbias(common.hopper().boxed()));
    }
    Some(Config::Dbias(DbiasKernel { common, form, pairs }))
}

/// Whether Hopper's own kernels may be asked at all.
fn allowed(gpu: Gpu, kernels: Kernels) -> Result<(), NotHopper> {
    match kernels {
        Kernels::Best if gpu.is_hopper() => Ok(()),
        Kernels::Best => Err(NotHopper::Gpu(gpu)),
        Kernels::Portable => Err(NotHopper::NotWanted),
    }
}

/// What the kernels of a call share.
fn common(
    problem: &Problem,
    (half, stored): (Half, Stored),
    tensors: &[DeviceTensor],
    scores: &DeviceScores,
) -> Common {
    let (real, padded) = (HeadDims::of(problem), portable::padded(problem));
    let in_pieces = real.map(|columns| columns.is_multiple_of(8)) == [true; 2]
        && tensors.iter().all(DeviceTensor::is_aligned);
    let head_dim_v = (real.q != real.v).then_some(padded.v);
    Common {
        operands: Operands { half, stored, head_dim: padded.q, head_dim_v, layout: Layout::of(problem) },
        access: match in_pieces {
            true if real == padded => Access::Whole,
            true => Access::Pieces,
            false => Access::Elements,
        },
        scores: Scores {
            band: BandKind::of(problem.sides()),
            dropout: problem.keep_rule().is_some(),
            kind: ScoreKind::of(problem),
            overlays: Overlays::of(problem, scores),
            sinks: problem.sinks(),
        },
    }
}
