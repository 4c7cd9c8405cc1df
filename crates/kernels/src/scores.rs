//! What scores are made of besides q and k, in device memory.
use crate::call::CallError;
use signflash_core::Problem;

/// The operands of a call's scores: those that its problem declares, and no others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceScores {
    /// Address of the slopes of ALiBi, f32, dense: (num_heads), or (batch or sequences, num_heads); 0 for none.
    pub alibi_slopes: u64,
    /// The bias.
    pub bias: Option<DeviceScoreTensor>,
    /// The mask: bytes, of which 0 hides a key.
    pub mask: Option<DeviceScoreTensor>,
    /// Address of the sinks, f32 (num_heads); 0 for none.
    pub sinks: u64,
}

/// A bias or a mask, or the gradient of a bias, of the shape and dtype that the problem says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceScoreTensor {
    /// Address of its first element.
    pub ptr: u64,
    /// Elements from one (batch, head, query, key) to the next. Whatever there is one of may have any.
    pub strides: [u64; 4],
}

impl DeviceScores {
    /// Whether these are what a problem declares, no less and no more.
    pub(crate) fn check(&self, problem: &Problem) -> Result<(), CallError> {
        let given = [
            ("alibi_slopes", problem.alibi().is_some(), self.alibi_slopes != 0),
            ("bias", problem.bias().is_some(), self.bias.is_some()),
            ("mask", problem.mask().is_some(), self.mask.is_some()),
            ("sinks", problem.sinks(), self.sinks != 0),
        ];
        for (tensor, declared, given) in given {
            match (declared, given) {
                (true, false) => return Err(CallError::NoScores { tensor }),
                (false, true) => return Err(CallError::ScoresNotDeclared { tensor }),
                _ => (),
            }
        }
        let floats = [("alibi_slopes", self.alibi_slopes), ("sinks", self.sinks)];
        match floats.into_iter().find(|(_, got)| !got.is_multiple_of(4)) {
            Some((argument, got)) => Err(CallError::Address { argument, multiple: 4, got }),
            None => Ok(()),
        }
    }
}

impl DeviceScoreTensor {
    /// A tensor at an address, of which the elements are so far apart.
    pub fn of(ptr: u64, strides: [usize; 4]) -> Self {
        DeviceScoreTensor { ptr, strides: strides.map(|stride| stride as u64) }
    }
}
