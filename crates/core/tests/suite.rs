//! The suite accepts the oracle itself, rounded.

mod reference {
    signflash_core::test_implementation!(signflash_core::suite::Reference);
}
