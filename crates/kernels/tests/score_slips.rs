//! Slips in what makes scores, one at a time: in the Rust of softcaps, ALiBi, sinks and their gradients an operation is
//! confused with another one, or an operand is forgotten. A case of the suite notices each in the interpreter, or it is
//! listed here with the reason why nothing, or next to nothing, is wrong. `cargo test` tries one in 24 of them, and with
//! `SIGNFLASH_TEST=all` each, which takes more than ten minutes.

use signflash_core::suite::{Case, Extent, Implementation, RunError, run_case};
use signflash_core::{Dtype, Element, GradInputs, Gradients, Inputs, Outputs, Problem, Slopes};
use signflash_kernels::{Config, Gpu, Interpreted, Kernel};
use signflash_ptx::Slip;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Mutex;

/// Whose lines are tried.
const FILES: [&str; 6] = [
    "parts/scores/mod.rs",
    "parts/scores/softcap.rs",
    "parts/scores/alibi.rs",
    "parts/scores/gradients.rs",
    "parts/sinks.rs",
    "rows/dsinks.rs",
];

/// The interpreter, each kernel with a slip; or as it is, and the slips that are met.
struct Slipped {
    on: Interpreted,
    slip: Option<Slip>,
    met: RefCell<BTreeSet<Slip>>,
}

impl Slipped {
    fn kernel(&self, config: &Config) -> Kernel {
        let kernel = config.kernel();
        match &self.slip {
            Some(slip) => kernel.slipped(slip),
            None => {
                self.met.borrow_mut().extend(FILES.iter().flat_map(|file| kernel.slips(file)));
                kernel
            }
        }
    }
}

impl Implementation for Slipped {
    fn name(&self) -> String {
        format!("{:?} with {:?}", self.on, self.slip)
    }

    fn has_deterministic_backward(&self) -> bool {
        false
    }

    fn spreads_non_finite(&self) -> bool {
        true
    }

    fn forward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_, T>,
        outputs: &mut Outputs<'_, T>,
    ) -> Result<(), RunError> {
        Ok(self.on.forward_by(&|config| self.kernel(config), problem, inputs, outputs)?)
    }

    fn backward<T: Element>(
        &self,
        problem: &Problem,
        inputs: &GradInputs<'_, T>,
        gradients: &mut Gradients<'_, T>,
    ) -> Result<(), RunError> {
        Ok(self.on.backward_by(&|config| self.kernel(config), problem, inputs, gradients)?)
    }
}

fn case(queries: usize, keys: usize) -> Case {
    Case::new(queries, keys).heads(1, 1).head_dim(32).dtypes(&[Dtype::F16])
}

/// Small, and together through every line.
fn cases() -> Vec<Case> {
    let (each, one) = ([Extent::One, Extent::Each, Extent::Each], [Extent::Each, Extent::One, Extent::One]);
    vec![
        // Scores that are bent by exponentials, by the polynomial, and not at all.
        case(20, 40).softcap(1.5).dropout(0.2),
        case(20, 40).softcap(6.5).causal(),
        // Further steps, of products that are weighed as they are; and of some that cannot be, and then are not.
        case(20, 270).softcap(30.0).dropout(0.2),
        case(20, 400).softcap(8.0),
        // Of a tile's scores one that is large, and perhaps negative.
        case(2, 1).heads(32, 32).head_dim(8).softcap(0.7),
        // Whole tiles of scores that are all large, as what stands for no row or key is not.
        case(128, 128).softcap(0.05),
        // Tiles on the diagonal and, close to it, behind; and before.
        case(128, 150).alibi(Slopes::PerHead).diagonal(0),
        case(40, 150).heads(2, 1).alibi(Slopes::PerHead).diagonal(130).dropout(0.2),
        // Sinks far from all scores, and more rows than are added up at once.
        case(20, 40).sinks().softmax_scale(8.0),
        case(2100, 3).head_dim(8).sinks(),
        case(9, 3)
            .heads(2, 1)
            .packed(&[20, 0, 33], &[50, 20, 40])
            .softcap(4.0)
            .alibi(Slopes::PerSequence)
            .sinks(),
        case(40, 30).batch(2).heads(2, 2).sinks().causal().dropout(0.2),
        case(20, 40).softcap(2.0).alibi(Slopes::PerHead).bias(Dtype::F16, each).mask(one),
        case(20, 40).bias(Dtype::F16, each).alibi(Slopes::PerHead).softmax_scale(-0.2),
        case(20, 40).softmax_scale(-0.2).dropout(0.2),
    ]
}

/// What the slip's words contain, how many such, and why nothing shows.
type NotNoticed = (&'static str, &'static str, usize, &'static str);

const OF_PACKED: NotNoticed =
    ("add.u32 as a difference", "alibi.rs", 1, "what packed sequences add to where they face is 0");

const OF_WARPS: NotNoticed = ("shfl.sync.idx", "dsinks.rs", 1, "all lanes of a warp know its number");

const OF_A_LANE: NotNoticed =
    ("setp.eq.u32 not", "dsinks.rs", 1, "the other lanes of a warp store the same number at the same place");

const OF_NO_ROW: NotNoticed =
    ("setp.eq.f32 never", "dsinks.rs", 1, "here what stands for no row has a weight");

const OF_TANH: NotNoticed = (
    "selp.b32 never",
    "softcap.rs",
    3,
    "a step whose numbers are taken for too large is done again, and as right as before",
);

const OF_LANES: NotNoticed = ("add.u32", "softcap.rs", 3, "lanes always choose so");

const OF_CHOICES: NotNoticed = ("selp.b32 always", "softcap.rs", 3, "as above, or a step that is done again");

const OF_HIDDEN: NotNoticed =
    ("selp.b32 always", "gradients.rs", 1, "here no bias hides, and a mask of keys is asked later");

const OF_SQUARES: NotNoticed = ("selp.b32 turned round", "softcap.rs", 1, "likewise");

const NOT_NOTICED: [&[NotNoticed]; 2] = [
    &[OF_PACKED, OF_WARPS, OF_NO_ROW, OF_TANH, OF_LANES, OF_CHOICES, OF_SQUARES, OF_HIDDEN, OF_A_LANE],
    &[OF_PACKED, OF_WARPS, OF_NO_ROW],
];

fn one_in() -> usize {
    match std::env::var("SIGNFLASH_TEST").as_deref() {
        Ok("all") => 1,
        _ => 24,
    }
}

/// Whether a case shows a slip.
fn shows(gpu: Gpu, case: &Case, slip: &Slip) -> bool {
    let slipped = Slipped { on: Interpreted::new(gpu), slip: Some(slip.clone()), met: RefCell::default() };
    !run_case("with a slip", case, &slipped).failures.is_empty()
}

/// Tries the slips that cases meet on a GPU, but for those that are listed.
fn check(gpu: Gpu, listed: &[NotNoticed]) {
    let cases: Vec<(Case, BTreeSet<Slip>)> = cases()
        .into_iter()
        .map(|case| {
            let right = Slipped { on: Interpreted::new(gpu), slip: None, met: RefCell::default() };
            let report = run_case("as it is", &case, &right);
            assert_eq!((report.ran, report.failures.len()), (1, 0), "{report}");
            (case, right.met.into_inner())
        })
        .collect();
    let all: BTreeSet<&Slip> = cases.iter().flat_map(|(_, met)| met).collect();
    assert!(all.len() > 100, "only {} slips", all.len());
    let (tried, unnoticed) = (Mutex::new(all.iter().step_by(one_in())), Mutex::new(vec![]));
    let next = || tried.lock().ok().and_then(|mut tried| tried.next());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(&slip) = next() {
                    let mut meet = cases.iter().filter(|(_, met)| met.contains(slip));
                    if !meet.any(|(case, _)| shows(gpu, case, slip)) {
                        unnoticed.lock().expect("no other thread fails").push(slip.to_string());
                    }
                }
            });
        }
    });
    let mut unnoticed = unnoticed.into_inner().expect("no thread failed");
    for (text, file, count, why) in listed {
        let (of_this, others): (Vec<String>, _) =
            unnoticed.into_iter().partition(|slip| slip.contains(text) && slip.contains(file));
        let as_listed = if one_in() == 1 { of_this.len() == *count } else { of_this.len() <= *count };
        assert!(as_listed, "{text} in {file} ({why}), {count} of them: {of_this:#?}");
        unnoticed = others;
    }
    assert_eq!(unnoticed, Vec::<String>::new(), "of {}", all.len());
}

#[test]
fn slips_in_hopper_s_kernels_are_noticed() {
    check(Gpu::HOPPER, NOT_NOTICED[0]);
}

#[test]
fn slips_in_portable_kernels_are_noticed() {
    check(Gpu::SMALL, NOT_NOTICED[1]);
}
