//! What a kernel crate hands over to be run.

/// A kernel as PTX, and how it is launched.
///
/// ```
/// use signflash_cuda::{OwnedProgram, Program};
///
/// let ptx = ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry nothing() { ret; }\n";
/// let program = Program { entry: "nothing", ptx, block_threads: 128, dynamic_smem_bytes: 0 };
/// assert_eq!(OwnedProgram::from(program).as_program(), program);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Program<'a> {
    /// The name after `.entry`.
    pub entry: &'a str,
    /// The text of the whole module.
    pub ptx: &'a str,
    /// Threads of a block, in one dimension.
    pub block_threads: u32,
    /// Shared memory of a block beyond what the PTX declares with a size.
    pub dynamic_smem_bytes: u32,
}

/// A [`Program`] that owns its text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OwnedProgram {
    /// The name after `.entry`.
    pub entry: String,
    /// The text of the whole module.
    pub ptx: String,
    /// Threads of a block, in one dimension.
    pub block_threads: u32,
    /// Shared memory of a block beyond what the PTX declares with a size.
    pub dynamic_smem_bytes: u32,
}

impl OwnedProgram {
    /// The same, borrowed.
    pub fn as_program(&self) -> Program<'_> {
        Program {
            entry: &self.entry,
            ptx: &self.ptx,
            block_threads: self.block_threads,
            dynamic_smem_bytes: self.dynamic_smem_bytes,
        }
    }
}

impl From<Program<'_>> for OwnedProgram {
    fn from(program: Program<'_>) -> Self {
        Self {
            entry: program.entry.into(),
            ptx: program.ptx.into(),
            block_threads: program.block_threads,
            dynamic_smem_bytes: program.dynamic_smem_bytes,
        }
    }
}
