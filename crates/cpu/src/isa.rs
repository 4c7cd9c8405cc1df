//! The instruction sets that there are kernels for.

use std::fmt;
use std::str::FromStr;

/// An instruction set that the kernels are compiled for.
///
/// f32 results of [`Avx2`](Self::Avx2), [`Avx512`](Self::Avx512) and [`Avx512Bf16`](Self::Avx512Bf16) are the same to
/// the bit; [`Portable`](Self::Portable) rounds products before adding where the target has no fused multiply-add.
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
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same, and AVX512-BF16 dot products for bf16 tensors.
    Avx512Bf16,
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
    #[error("isa must be one of portable, avx2, avx512, avx512bf16, got {got:?}")]
    Unknown {
        /// What was asked for.
        got: String,
    },
}

impl Isa {
    /// All instruction sets, slowest first.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16];

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            let avx512 = avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
            match self {
                Self::Portable => true,
                Self::Avx2 => avx2,
                Self::Avx512 => avx512,
                Self::Avx512Bf16 => avx512 && has!("avx512bf16"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable
        }
    }

    /// Those this machine has, slowest first.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The fastest that this machine has.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::Portable)
    }

    /// Its name, as `FromStr` reads it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
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
