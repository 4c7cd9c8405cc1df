//! The name of an entry on disk.

use sha2::{Digest, Sha256};
use std::fmt;

/// The SHA-256 of everything that machine code depends on. Displayed, it is 64 hexadecimal digits.
///
/// ```
/// use signflash_cuda::StoreKey;
/// assert_eq!(StoreKey::of(&["12.8", "text"]), StoreKey::of(&["12.8", "text"]));
/// assert_ne!(StoreKey::of(&["12.8", "text"]), StoreKey::of(&["12.", "8text"]));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoreKey(pub(super) [u8; 32]);

impl StoreKey {
    /// The key of these parts in this order.
    pub fn of(parts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            // Lengths keep a character from moving from one part to the next unnoticed.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        Self(hash.finalize().into())
    }
}

impl fmt::Display for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
