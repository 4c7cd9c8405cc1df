//! A stream among others that it does not know.

use crate::support::{gpu, program};
use signflash_cuda::{Arg, DeviceBuffer, Function, Stream};

/// Copies one word after so many nanoseconds.
const COPY_LATE: &str = "
.version 7.0
.target sm_80
.address_size 64
.visible .entry copy_late(.param .u64 from, .param .u64 to, .param .u64 ns) {
    .reg .pred %p;
    .reg .b32 %x;
    .reg .b64 %from, %to, %ns, %start, %now;
    ld.param.u64 %from, [from];
    ld.param.u64 %to, [to];
    ld.param.u64 %ns, [ns];
    mov.u64 %start, %globaltimer;
wait:
    mov.u64 %now, %globaltimer;
    sub.u64 %now, %now, %start;
    setp.lt.u64 %p, %now, %ns;
    @%p bra wait;
    ld.volatile.global.u32 %x, [%from];
    st.volatile.global.u32 [%to], %x;
    ret;
}
";

#[test]
fn a_stream_waits_for_all_before_it_and_all_behind_wait_for_it() {
    let Some(device) = gpu() else { return };
    let [theirs, ours] = [(); 2].map(|()| Stream::new(&device).unwrap());
    let kernel = Function::compile(&device, &program("copy_late", COPY_LATE, &[8, 8, 8], 1)).unwrap();
    let word = |number: u32| DeviceBuffer::from_host(&ours, &number.to_le_bytes()).unwrap();
    let (one, first, second) = (word(1), word(0), word(0));
    ours.synchronize().unwrap();
    let copy = |stream: &Stream, from: &DeviceBuffer, to: &DeviceBuffer, ms: u64| {
        let args = [Arg::from(from), Arg::from(to), Arg::U64(ms * 1_000_000)];
        // SAFETY: both buffers have room for one word and live until their last reader is done.
        unsafe { kernel.launch(stream, 1, &args) }.unwrap();
    };
    copy(&theirs, &one, &first, 200);
    ours.after_all().unwrap();
    copy(&ours, &first, &second, 50);
    ours.before_all().unwrap();
    let later = Stream::new(&device).unwrap();
    assert_eq!(second.to_host(&later).unwrap(), 1u32.to_le_bytes());
}
