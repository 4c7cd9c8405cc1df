//! Tests that need what is private to the engine, beside its kernels: they stand in `src/passes/tests.rs`.

macro_rules! inside {
    ($($name:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            signflash_cpu::inside::$name();
        }
    )*};
}

inside!(
    any_band_is_the_oracles_f32,
    any_band_is_the_oracles_bf16,
    sequences_side_by_side_are_each_by_itself_f32,
    sequences_side_by_side_are_each_by_itself_bf16,
    what_nobody_sees_is_not_computed,
);
