//! The instruction sets that there are kernels for.

use crate::tiles::Tiles;
use signflash_core::Dtype;
use std::fmt;
use std::str::FromStr;

/// An instruction set that the kernels are compiled for.
///
/// f32 results of [`Neon`](Self::Neon), [`Avx2`](Self::Avx2), [`Avx512`](Self::Avx512), [`Avx512Bf16`](Self::Avx512Bf16) and [`Amx`](Self::Amx)
/// are the same to the bit; [`Portable`](Self::Portable) rounds products before adding where the target has no fused multiply-add.
///
/// ```
/// use signflash_cpu::Isa;
/// assert!(Isa::available().contains(&Isa::best()));
/// assert_eq!("avx2".parse::<Isa>().unwrap(), Isa::Avx2);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Isa {
    /// What the compilation target guarantees; runs anywhere.
    Portable,
    /// NEON, of 64-bit ARM.
    Neon,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same, and AVX512-BF16 dot products for bf16 tensors.
    Avx512Bf16,
    /// The same, and AMX's products of tiles for bf16 tensors. On Linux, which must let this process use them.
    Amx,
}

/// Why an instruction set cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IsaError {
    /// This machine lacks it.
    #[error("isa {isa} is not available on this machine; available: {available}")]
    Unavailable {
        /// What was asked for.
        isa: Isa,
        /// What there is.
        available: String,
    },
    /// No instruction set of that name.
    #[error("isa must be one of portable, neon, avx2, avx512, avx512bf16, amx, got {got:?}")]
    Unknown {
        /// What was asked for.
        got: String,
    },
}

impl Isa {
    /// All instruction sets, slowest first.
    pub const ALL: [Self; 6] =
        [Self::Portable, Self::Neon, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            let avx512 = avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
            match self {
                Self::Portable => true,
                Self::Neon => false,
                Self::Avx2 => avx2,
                Self::Avx512 => avx512,
                Self::Avx512Bf16 => avx512 && has!("avx512bf16"),
                Self::Amx => avx512 && has!("avx512bf16") && Tiles::of_this_machine().is_ok(),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable || (self == Self::Neon && cfg!(target_arch = "aarch64"))
        }
    }

    /// Those this machine has, slowest first.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The fastest that this machine has: see [`choice`](Self::choice). The machine is asked once: on a virtual one the processor's
    /// answer takes longer than a small attention.
    pub fn best() -> Self {
        static BEST: std::sync::OnceLock<Isa> = std::sync::OnceLock::new();
        *BEST.get_or_init(|| Self::choice().isa)
    }

    /// The fastest that this machine has, and why it is taken for that.
    ///
    /// It is the last of [`available`](Self::available), but for [`Avx512Bf16`](Self::Avx512Bf16) where dot products of
    /// bf16 pairs are slower than f32's multiply-adds. Which they are follows from who made the processor, and not from a
    /// measurement, since results of bf16 tensors depend on it: a machine gives the same bits every day, however busy it is.
    /// [`peak`](crate::peak) measures both.
    pub fn choice() -> Choice {
        let fastest = Self::available().pop().unwrap_or(Self::Portable);
        if fastest == Self::Avx512Bf16 && vendor::is_intel() {
            let because = "the last of those available but avx512bf16, whose dot products of bf16 pairs take four times \
                           as long as a multiply-add of f32 on Intel's processors: f32 computes bf16 in half the time";
            return Choice { isa: Self::Avx512, because: format!("{because}{}", why_not_amx()) };
        }
        let because = "the last of those available, which are in the order of their speed";
        Choice { isa: fastest, because: format!("{because}{}", why_not_amx()) }
    }

    /// Whether tensors of this type are multiplied in tiles.
    pub(crate) fn multiplies_tiles(self, dtype: Dtype) -> bool {
        self == Self::Amx && dtype == Dtype::Bf16
    }

    /// Its name, as `FromStr` reads it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Amx => "amx",
        }
    }

    /// Itself, if this machine has it.
    ///
    /// # Errors
    /// [`IsaError::Unavailable`].
    pub fn require(self) -> Result<Self, IsaError> {
        if self.is_available() {
            return Ok(self);
        }
        let available = Self::available().iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ");
        Err(IsaError::Unavailable { isa: self, available })
    }
}

/// Why a machine that could multiply tiles if it had AMX does not.
fn why_not_amx() -> String {
    match Tiles::of_this_machine() {
        Err(reason) if Isa::Avx512Bf16.is_available() => format!("; amx is not, since {reason}"),
        _ => String::new(),
    }
}

/// See [`Isa::choice`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Choice {
    /// What is used unless something else is asked for.
    pub isa: Isa,
    /// Why, as half a sentence.
    pub because: String,
}

/// Who made this processor.
mod vendor {
    #[cfg(target_arch = "x86_64")]
    pub(super) fn is_intel() -> bool {
        let leaf = std::arch::x86_64::__cpuid(0);
        [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn is_intel() -> bool {
        false
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = IsaError;

    fn from_str(name: &str) -> Result<Self, IsaError> {
        Self::ALL
            .into_iter()
            .find(|isa| isa.name() == name)
            .ok_or_else(|| IsaError::Unknown { got: name.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peak;
    use std::time::Duration;

    #[test]
    fn the_fastest_is_chosen_and_the_choice_has_a_reason() {
        let Choice { isa, because } = Isa::choice();
        assert_eq!(isa, Isa::best());
        assert!(isa.is_available() && !because.is_empty());
        assert!(Isa::available().iter().all(|&other| other <= isa || other == Isa::Avx512Bf16));
        let says_why_not = because.contains("amx is not, since");
        assert_eq!(says_why_not, Isa::Avx512Bf16.is_available() && !Isa::Amx.is_available(), "{because}");
    }

    /// The rates differ by a factor of two or more on every processor that is known, so a busy machine does not matter.
    #[test]
    fn who_made_the_processor_says_the_same_of_bf16_as_a_measurement() {
        if !Isa::Avx512Bf16.is_available() {
            return;
        }
        let (mut of_f32, mut of_pairs) = (0.0f64, 0.0f64);
        for _ in 0..5 {
            let rate = |isa, dtype| peak::fma_gflops(isa, dtype, 1, Duration::from_millis(3));
            of_f32 = of_f32.max(rate(Isa::Avx512, Dtype::F32));
            of_pairs = of_pairs.max(rate(Isa::Avx512Bf16, Dtype::Bf16));
        }
        if !Isa::Amx.is_available() && (of_pairs / of_f32).ln().abs() > 1.3f64.ln() {
            let faster = if of_pairs > of_f32 { Isa::Avx512Bf16 } else { Isa::Avx512 };
            assert_eq!(Isa::best(), faster, "f32 {of_f32} GFLOP/s, pairs of bf16 {of_pairs}");
        }
    }
}
