//! The native half of the Python package `signflash`: attention over tensors that PyTorch or NumPy owns, which arrive
//! as an address, a shape and strides, or tell these themselves.
//!
//! Nothing of Python's or PyTorch's is linked: the module is built for Python's stable interface (`abi3`), by maturin,
//! with the feature `extension`. Without it this is an ordinary crate, so that the workspace builds where there is no
//! Python.
//!
//! | module | what |
//! |---|---|
//! | [`foreign`] | somebody else's tensor, judged against the problem |
//! | [`settings`] | what is to be computed |
//! | [`joined`] | what scores are made of besides q and k |
//! | [`lengths`] | where packed sequences begin |
//! | [`call`] | forward and backward, on the CPU or on a GPU |
//! | [`error`] | why a call was not computed |
//! | [`kept`] | the dropout mask, written out |
//! | `arguments` | the numbers that Python passes, as types |
//! | `lent`, `dims` | the tensors that it lends, judged |
//! | `exchange` | tensors that describe themselves |
//! | `libtorch` | functions of PyTorch's stable C interface, found at run time |
//! | `quick` | the short way of a plain call, by them |
//! | `operators` | kernels of PyTorch's operators, which call no Python |
//! | `symbols` | functions of libraries that are loaded |
//! | `module` | the functions that Python sees |

pub mod call;
pub mod error;
pub mod foreign;
pub mod joined;
pub mod kept;
pub mod lengths;
pub mod settings;

mod cpu;
mod cuda;
mod openmp;
mod pool;

#[cfg(feature = "extension")]
mod arguments;
#[cfg(feature = "extension")]
mod dims;
#[cfg(feature = "extension")]
mod ending;
#[cfg(feature = "extension")]
mod exchange;
#[cfg(feature = "extension")]
mod lent;
#[cfg(feature = "extension")]
mod libtorch;
#[cfg(feature = "extension")]
mod logger;
#[cfg(feature = "extension")]
mod module;
#[cfg(feature = "extension")]
mod operators;
#[cfg(feature = "extension")]
mod quick;
#[cfg(feature = "extension")]
mod symbols;
