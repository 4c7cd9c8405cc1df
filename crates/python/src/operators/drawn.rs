//! The random state of a call, and how operators return it and get it back.

use super::given::Given;
use super::python;
use super::stable::{Failure, Outcome, Tensor, Torch};
use crate::settings::RandomState;

const STATE_BYTES: usize = 16;

/// Numbers, or, while a CUDA graph is captured, a tensor (seed, offset) that each run fills anew.
pub(crate) enum Drawn {
    Numbers { seed: u64, offset: u64 },
    OnGpu(Tensor),
}

impl Drawn {
    /// That of a forward, which is ours; without dropout nothing is drawn.
    pub(crate) fn of(given: &Given) -> Outcome<Self> {
        if let Some((seed, offset)) = python::draw(given)? {
            return Ok(Self::Numbers { seed, offset });
        }
        let torch = given.torch();
        let state = torch.row(2, torch.codes.int64, given.q.gpu)?;
        let (functions, two) = (&torch.functions, 2);
        // The generator's numbers are the replay's to know: a kernel draws them, so each drops entries of its own.
        // SAFETY: a tensor that is ours, and one size.
        torch.check(unsafe { (functions.randint)(state.handle(), 0, i64::MAX, &raw const two, 1) })?;
        Ok(Self::OnGpu(state))
    }

    pub(crate) fn for_kernels(&self) -> Outcome<RandomState> {
        Ok(match self {
            Self::Numbers { seed, offset } => RandomState { seed: *seed, offset: *offset, address: 0 },
            Self::OnGpu(state) => RandomState { address: state.address()?, ..RandomState::default() },
        })
    }

    /// A uint64 tensor of both; on the CPU where they are known, so that the backward reads it without waiting for the GPU.
    pub(crate) fn as_one(&self, torch: &'static Torch) -> Outcome<Tensor> {
        match self {
            Self::OnGpu(state) => state.view_as(torch.codes.uint64),
            Self::Numbers { seed, offset } => {
                let state = torch.row(2, torch.codes.uint64, None)?;
                write(&state, &[*seed, *offset])?;
                Ok(state)
            }
        }
    }

    /// int64 tensors (seed, offset) of no dimension; on a GPU in one memory.
    pub(crate) fn as_two(&self, torch: &'static Torch) -> Outcome<[Tensor; 2]> {
        match self {
            Self::OnGpu(state) => Ok([state.view(&[], &[], 0)?, state.view(&[], &[], 1)?]),
            Self::Numbers { seed, offset } => {
                let number = |value: u64| {
                    let tensor = torch.empty(&[], &[], torch.codes.int64, None)?;
                    write(&tensor, &[value])?;
                    Ok::<_, Failure>(tensor)
                };
                Ok([number(*seed)?, number(*offset)?])
            }
        }
    }
}

/// # Errors
/// If there is no memory of these numbers on the CPU.
fn numbers(tensor: &Tensor, count: usize) -> Outcome<*mut u64> {
    let torch = tensor.torch();
    let (dims, dtype) = (tensor.dims()?, tensor.dtype()?);
    let (first, bytes) = tensor.within_storage()?;
    let is_one = dtype == torch.codes.int64 || dtype == torch.codes.uint64;
    let has_all = dims.shape == [1, 1, 1, count]
        && (count == 1 || dims.strides[3] == 1)
        && (first + count) * 8 <= bytes;
    let address = tensor.address()?;
    if !is_one || !has_all || tensor.gpu()?.is_some() || address == 0 || !address.is_multiple_of(8) {
        return Err(Failure(format!(
            "a random state must be {count} int64 on the CPU, as the forward returned them"
        )));
    }
    Ok(std::ptr::with_exposed_provenance_mut(address as usize))
}

/// Writes to a new tensor on the CPU.
fn write(tensor: &Tensor, values: &[u64]) -> Outcome<()> {
    let to = numbers(tensor, values.len())?;
    // SAFETY: `numbers` has found memory for as many, aligned; the tensor has just been made, and nobody else has it.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), to, values.len()) };
    Ok(())
}

fn read<const N: usize>(tensor: &Tensor) -> Outcome<[u64; N]> {
    let from = numbers(tensor, N)?.cast::<[u64; N]>();
    // SAFETY: `numbers` has found as many, aligned; nobody writes what autograd has saved.
    Ok(unsafe { from.read() })
}

/// What [`Drawn::as_one`] was.
pub(crate) fn of_one(state: &Tensor) -> Outcome<RandomState> {
    if state.gpu()?.is_none() {
        let [seed, offset] = read(state)?;
        return Ok(RandomState { seed, offset, address: 0 });
    }
    let (dims, (first, bytes)) = (state.dims()?, state.within_storage()?);
    if dims.shape != [1, 1, 1, 2] || dims.strides[3] != 1 || (first + 2) * 8 > bytes {
        return Err(Failure("a random state must be 2 numbers, as the forward returned them".to_owned()));
    }
    Ok(RandomState { address: state.address()?, ..RandomState::default() })
}

/// What [`Drawn::as_two`] were: on a GPU, where nobody waits for numbers, both must lie in one memory.
pub(crate) fn of_two(seed: &Tensor, offset: &Tensor) -> Outcome<RandomState> {
    if seed.gpu()?.is_none() {
        let ([seed], [offset]) = (read(seed)?, read(offset)?);
        return Ok(RandomState { seed, offset, address: 0 });
    }
    let address = seed.address()?;
    if seed.within_storage()? != (0, STATE_BYTES) || offset.address()? != address + STATE_BYTES as u64 / 2 {
        return Err(Failure(
            "signflash cannot find the random state of this call's forward: its seed and offset were moved apart; please \
             report this, with what captured the CUDA graph"
                .to_owned(),
        ));
    }
    Ok(RandomState { address, ..RandomState::default() })
}
