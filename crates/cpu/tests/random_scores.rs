//! Random problems with all that may become of a score, on every instruction set, against the oracle. Each is drawn from
//! its number, so that a failure names a case which stays. `cargo test` alone draws a few, `SIGNFLASH_TEST=full`, as in
//! `.ci/run`, sixty, and `SIGNFLASH_TEST=all` six hundred.

mod common;

use common::Engine;
use signflash_core::suite::{Case, Extent, Layout, run_case};
use signflash_core::{Dtype, Slopes};
use signflash_cpu::Isa;

/// splitmix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 32) as usize % end
    }

    fn of<T: Copy>(&mut self, some: &[T]) -> T {
        some[self.below(some.len())]
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn extents(&mut self) -> [Extent; 3] {
        [(); 3].map(|()| self.of(&[Extent::One, Extent::Each]))
    }
}

/// Where queries and keys lie, and which of them see each other.
fn shaped(random: &mut Random) -> Case {
    let case = match random.one_in(3) {
        true => {
            let mut lengths = |most| [(); 3].map(|()| random.below(most) as u32);
            let (queries, keys) = (lengths(70), lengths(150));
            Case::new(random.below(3), random.below(3)).packed(&queries, &keys)
        }
        false => {
            let case = Case::new(1 + random.below(150), 1 + random.below(280)).batch(1 + random.below(3));
            case.layout(random.of(&[Layout::Bshd, Layout::Bhsd]))
        }
    };
    let (heads, heads_k) = random.of(&[(1, 1), (2, 1), (2, 2), (6, 2)]);
    let case = case.heads(heads, heads_k);
    let head_dim = random.of(&[1, 5, 16, 40, 64, 72, 128]);
    let case = case.head_dim(head_dim).head_dim_v(random.of(&[head_dim, head_dim, 3, 48]));
    match random.below(5) {
        0 => case.causal(),
        1 => case.window(random.below(60), random.below(20)),
        2 => case.window(random.below(60), None).causal(),
        _ => case,
    }
}

/// A problem of which each thing may become of a score, or not.
fn drawn(number: u64) -> Case {
    let mut random = Random(number);
    let mut case = shaped(&mut random);
    if random.one_in(2) {
        case = case.softcap(random.of(&[0.3, 2.0, 7.0, 50.0]));
    }
    if random.one_in(2) {
        case = case.alibi(random.of(&[Slopes::PerHead, Slopes::PerSequence]));
    }
    if random.one_in(2) {
        case = case.bias(random.of(&[Dtype::F32, Dtype::F16, Dtype::Bf16]), random.extents());
    }
    if random.one_in(3) {
        case = case.mask(random.extents());
    }
    if random.one_in(3) {
        case = case.sinks();
    }
    if random.one_in(2) {
        case = case.dropout_at(random.of(&[0.1, 0.5, 0.9]), number, 32 * number);
    }
    if random.one_in(3) {
        case = case.dlse();
    }
    if random.one_in(4) {
        case = case.softmax_scale(random.of(&[-0.3, 0.02, 0.5]));
    }
    case
}

#[test]
fn random_problems_are_what_the_oracle_says() {
    let count = match std::env::var("SIGNFLASH_TEST").as_deref() {
        Ok("all") => 600,
        Ok("full") => 60,
        _ => 8,
    };
    let sets: Vec<Isa> = Isa::ALL.into_iter().filter(|&isa| Engine::On(isa).is_there()).collect();
    let failures: Vec<String> = (0..count)
        .filter_map(|number| {
            let case = drawn(number);
            let engine = match number as usize % (sets.len() + 1) {
                0 => Engine::InTwoPasses,
                set => Engine::On(sets[set - 1]),
            };
            let report = run_case(&format!("random {number}"), &case, &engine);
            let is_right = report.ran == 3 && report.failures.is_empty();
            (!is_right).then(|| format!("{report} of {case:?}"))
        })
        .collect();
    assert!(failures.is_empty(), "{} of {count}: {failures:#?}", failures.len());
}
