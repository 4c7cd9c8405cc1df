//! NCCL, found while the program runs: nothing is linked, and nothing is needed to build.

use libloading::Library;
use signflash::{CudaError, Device, DeviceBuffer, Stream};
use std::error::Error;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;

/// Bytes that one rank makes and all others are given: by them they find each other.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct UniqueId([u8; 128]);

type Handle = *mut c_void;
type Transfer = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Handle, Handle) -> c_int;

/// The functions that are used here, as nccl.h declares them.
struct Functions {
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    init: unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int) -> c_int,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
    begin: unsafe extern "C" fn() -> c_int,
    end: unsafe extern "C" fn() -> c_int,
    send: Transfer,
    receive: Transfer,
    text: unsafe extern "C" fn(c_int) -> *const c_char,
}

/// The library.
pub(crate) struct Nccl {
    functions: Functions,
    /// Where the functions are.
    _library: Library,
}

/// What NCCL says.
#[derive(Debug)]
pub(crate) struct NcclError {
    doing: &'static str,
    text: String,
}

impl fmt::Display for NcclError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NCCL could not {}: {}", self.doing, self.text)
    }
}

impl Error for NcclError {}

impl Nccl {
    /// From this file, or where the system finds `libnccl.so.2`; PyTorch's wheels bring it in `nvidia/nccl/lib`.
    pub(crate) fn load(path: Option<&str>) -> Result<Self, libloading::Error> {
        // SAFETY: loading NCCL runs its initialisers, which NVIDIA makes safe to run in any process; the functions are of the
        // types that nccl.h declares, and live as long as the library, which is kept beside them.
        unsafe {
            let library = Library::new(path.unwrap_or("libnccl.so.2"))?;
            let functions = Functions {
                unique_id: *library.get("ncclGetUniqueId")?,
                init: *library.get("ncclCommInitRank")?,
                destroy: *library.get("ncclCommDestroy")?,
                begin: *library.get("ncclGroupStart")?,
                end: *library.get("ncclGroupEnd")?,
                send: *library.get("ncclSend")?,
                receive: *library.get("ncclRecv")?,
                text: *library.get("ncclGetErrorString")?,
            };
            Ok(Nccl { functions, _library: library })
        }
    }

    /// For ranks that are to find each other.
    pub(crate) fn unique_id(&self) -> Result<UniqueId, NcclError> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: `id` is valid for a write of its 128 bytes.
        self.check(unsafe { (self.functions.unique_id)(&mut id) }, "make an id")?;
        Ok(id)
    }

    fn check(&self, result: c_int, doing: &'static str) -> Result<(), NcclError> {
        if result == 0 {
            return Ok(());
        }
        // SAFETY: NCCL returns a string of its own for every number.
        let text = unsafe { CStr::from_ptr((self.functions.text)(result)) };
        Err(NcclError { doing, text: text.to_string_lossy().into_owned() })
    }
}

/// A rank's end of a communicator.
pub(crate) struct Comm<'a> {
    nccl: &'a Nccl,
    handle: Handle,
    device: Device,
    rank: usize,
    ranks: usize,
}

impl<'a> Comm<'a> {
    /// Rank `rank` of `ranks`, on a GPU of its own. Returns when all ranks have come.
    pub(crate) fn new(
        nccl: &'a Nccl,
        id: UniqueId,
        (rank, ranks): (usize, usize),
        device: &Device,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: `handle` is valid for a write, and the id comes from `unique_id`.
        let init = || unsafe { (nccl.functions.init)(&mut handle, ranks as c_int, id, rank as c_int) };
        nccl.check(device.while_current(init)?, "bring the ranks together")?;
        Ok(Comm { nccl, handle, device: device.clone(), rank, ranks })
    }

    /// Puts into the stream that buffers go to the next rank, and that others as large come from the one before; does not
    /// wait. What is returned holds anything until the stream is done, and so long what is sent must stay.
    pub(crate) fn pass_on(
        &self,
        stream: &Stream,
        sent: [&DeviceBuffer; 2],
    ) -> Result<[DeviceBuffer; 2], Box<dyn Error + Send + Sync>> {
        let room = |buffer: &DeviceBuffer| DeviceBuffer::alloc(&self.device, buffer.len_bytes());
        let received = [room(sent[0])?, room(sent[1])?];
        let to = ((self.rank + 1) % self.ranks) as c_int;
        let from = ((self.rank + self.ranks - 1) % self.ranks) as c_int;
        let all = || -> Result<(), NcclError> {
            let Functions { begin, end, send, receive, .. } = self.nccl.functions;
            // SAFETY: a group of transfers that this thread ends below.
            self.nccl.check(unsafe { begin() }, "begin a group")?;
            let started = sent.iter().map(|buffer| (send, buffer.ptr(), buffer.len_bytes(), to));
            let expected = received.iter().map(|buffer| (receive, buffer.ptr(), buffer.len_bytes(), from));
            let put = |(transfer, address, bytes, peer): (Transfer, u64, usize, c_int)| {
                const UINT8: c_int = 1;
                let stream = stream.raw() as Handle;
                // SAFETY: so many bytes are at the address, on this communicator's GPU; those that are received have just
                // been allocated, and the caller keeps both until the stream, which is of this GPU, is done.
                unsafe { transfer(address as *mut c_void, bytes, UINT8, peer, self.handle, stream) }
            };
            let put =
                started.chain(expected).try_for_each(|one| self.nccl.check(put(one), "send or receive"));
            // SAFETY: the group was begun above, by this thread.
            put.and(self.nccl.check(unsafe { end() }, "start a group"))
        };
        self.device.while_current(all)??;
        Ok(received)
    }
}

impl Drop for Comm<'_> {
    fn drop(&mut self) {
        // SAFETY: `new` made it, and nobody else destroys it.
        let _ = self.device.while_current(|| unsafe { (self.nccl.functions.destroy)(self.handle) });
    }
}

/// Why a rank ended.
pub(crate) type Failed = Box<dyn Error + Send + Sync>;

/// Numbers of a buffer, when the stream's work so far is done.
pub(crate) fn floats(buffer: &DeviceBuffer, stream: &Stream) -> Result<Vec<f32>, CudaError> {
    let mut numbers = vec![0.0f32; buffer.len_bytes() / 4];
    buffer.copy_to_host(stream, bytemuck::cast_slice_mut(&mut numbers))?;
    Ok(numbers)
}
