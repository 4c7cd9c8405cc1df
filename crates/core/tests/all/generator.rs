//! The random state of successive calls: saved, restored, advanced as FlashAttention-2 advances it.

use proptest::prelude::*;
use signflash_core::{DropoutGenerator, GeneratorState, ProblemError, Shape};

fn shape(batch: usize, num_heads: usize) -> Shape {
    Shape::new(batch, 1000, 2000).heads(num_heads, 1).head_dim(64)
}

#[test]
fn a_call_advances_by_32_counters_for_each_batch_and_head() {
    let mut generator = DropoutGenerator::new(42);
    let offsets: Vec<u64> = [shape(2, 3), shape(1, 1), shape(5, 8)]
        .iter()
        .map(|shape| generator.next_dropout(0.1, shape).unwrap().offset())
        .collect();
    assert_eq!(offsets, [0, 2 * 3 * 32, 2 * 3 * 32 + 32]);
    assert_eq!(generator.state(), GeneratorState { seed: 42, offset: 2 * 3 * 32 + 32 + 5 * 8 * 32 });
}

#[test]
fn a_call_without_dropout_does_not_advance() {
    let mut generator = DropoutGenerator::new(42);
    let dropout = generator.next_dropout(0.0, &shape(2, 3)).unwrap();
    assert!(!dropout.is_active());
    assert_eq!(generator.state(), GeneratorState { seed: 42, offset: 0 });
}

#[test]
fn a_refused_call_does_not_advance() {
    let mut generator = DropoutGenerator::from_state(GeneratorState { seed: 1, offset: 96 });
    for p in [1.0, -0.1, f32::NAN, f32::INFINITY] {
        let refused = generator.next_dropout(p, &shape(2, 3)).unwrap_err();
        assert!(matches!(refused, ProblemError::DropoutP { .. }), "{refused}");
    }
    assert_eq!(generator.state().offset, 96);
}

#[test]
fn the_offset_wraps_around() {
    let mut generator = DropoutGenerator::from_state(GeneratorState { seed: 1, offset: u64::MAX - 31 });
    assert_eq!(generator.next_dropout(0.1, &shape(1, 2)).unwrap().offset(), u64::MAX - 31);
    assert_eq!(generator.state().offset, 32);
}

proptest! {
    #[test]
    fn a_restored_generator_goes_on_where_it_was_saved(
        seed: u64,
        offset: u64,
        calls in prop::collection::vec((1..9usize, 1..9usize), 1..8),
        saved_after in 0..8usize,
    ) {
        let mut generator = DropoutGenerator::from_state(GeneratorState { seed, offset });
        let (before, after) = calls.split_at(saved_after.min(calls.len()));
        for &(batch, heads) in before {
            generator.next_dropout(0.3, &shape(batch, heads)).unwrap();
        }
        let mut restored = DropoutGenerator::from_state(generator.state());
        for &(batch, heads) in after {
            let whole = shape(batch, heads);
            let (here, there) = (generator.next_dropout(0.3, &whole), restored.next_dropout(0.3, &whole));
            prop_assert_eq!(here.unwrap(), there.unwrap());
        }
        prop_assert_eq!(generator, restored);
    }

    /// The counters of two calls do not overlap.
    #[test]
    fn calls_share_no_counter(calls in prop::collection::vec((1..9usize, 1..9usize), 2..8)) {
        let mut generator = DropoutGenerator::new(7);
        let mut end = 0;
        for (batch, heads) in calls {
            let dropout = generator.next_dropout(0.3, &shape(batch, heads)).unwrap();
            prop_assert_eq!(dropout.offset(), end);
            // The last lane of the last head of the last batch.
            end = dropout.offset() + ((batch - 1) * heads + heads - 1) as u64 * 32 + 31 + 1;
        }
    }
}
