//! Which GPUs and which PTX versions an instruction is for.
use std::fmt;

/// The least GPU that a kernel's PTX is compiled for; the driver compiles it for any later one too, except for those
/// that end in `a`, which run on that architecture only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Ampere: mma.sync, ldmatrix, cp.async.
    Sm80,
    /// Hopper's portable part: bulk copies, mbarrier transactions, vectorised reductions.
    Sm90,
    /// Hopper alone: wgmma, setmaxnreg.
    Sm90a,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Target::Sm80 => "sm_80",
            Target::Sm90 => "sm_90",
            Target::Sm90a => "sm_90a",
        })
    }
}

/// The least PTX version and GPU of an instruction. A kernel needs the greatest of its instructions'.
///
/// ```
/// use signflash_ptx::{Needs, Target};
/// let both = Needs::SM80.and(Needs { ptx: (7, 8), target: Target::Sm90 });
/// assert_eq!(both, Needs { ptx: (7, 8), target: Target::Sm90 });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// `.version`, major and minor.
    pub ptx: (u8, u8),
    /// `.target`.
    pub target: Target,
}

impl Needs {
    /// What every kernel may use: PTX 7.0 on Ampere.
    pub const SM80: Needs = Needs { ptx: (7, 0), target: Target::Sm80 };
    /// A PTX version on Ampere.
    pub const fn ptx(major: u8, minor: u8) -> Needs {
        Needs { ptx: (major, minor), target: Target::Sm80 }
    }
    /// A PTX version on Hopper.
    pub const fn sm90(major: u8, minor: u8) -> Needs {
        Needs { ptx: (major, minor), target: Target::Sm90 }
    }

    /// A PTX version on Hopper alone.
    pub const fn sm90a(major: u8, minor: u8) -> Needs {
        Needs { ptx: (major, minor), target: Target::Sm90a }
    }

    /// The greatest of both.
    pub fn and(self, other: Needs) -> Needs {
        Needs { ptx: self.ptx.max(other.ptx), target: self.target.max(other.target) }
    }
}
