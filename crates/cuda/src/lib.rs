//! Runs PTX kernels on NVIDIA GPUs with only the driver installed: no toolkit, no compiler.

mod bound;
mod buffer;
mod compile;
mod declared;
mod device;
mod doing;
mod driver;
mod error;
mod function;
mod launch;
mod program;
mod stream;
mod workspace;

pub use buffer::DeviceBuffer;
pub use device::{Device, DeviceInfo};
pub use doing::Doing;
pub use error::{CudaError, DriverCode};
pub use function::Function;
pub use launch::Arg;
pub use program::{OwnedProgram, Program};
pub use stream::Stream;
pub use workspace::Workspace;
