//! Extra memory does not grow with the sequence length. Counted by the allocator, so the numbers do not depend on the
//! machine's mood. One test, because the count is the process's.

use peak_alloc::PeakAlloc;
use signflash_core::{
    Dropout, Element, GradInputs, Gradients, Inputs, Outputs, Problem, Shape, TensorMut, TensorRef, bf16,
};
use signflash_cpu::CpuEngine;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

const MIB: usize = 1 << 20;

/// One sequence of one head.
fn problem([seqlen_q, seqlen_k]: [usize; 2]) -> Problem {
    let shape = Shape::new(1, seqlen_q, seqlen_k).heads(1, 1).head_dim(64);
    let dropout = Dropout::new(0.1, 7, 0).expect("p is below 1");
    Problem::builder(shape).dropout(dropout).build().expect("a valid problem")
}

/// Bytes beyond the tensors that the forward and the backward of one sequence took at most.
fn extra_bytes<T: Element>(sizes: [usize; 2], engine: CpuEngine) -> [usize; 2] {
    extra_bytes_of::<T>(&problem(sizes), engine)
}

fn extra_bytes_of<T: Element>(problem: &Problem, engine: CpuEngine) -> [usize; 2] {
    let shape = problem.shape();
    let [of_q, of_k] = [shape.seqlen_q, shape.seqlen_k].map(|seqlen| seqlen * shape.head_dim);
    let tensor = |len: usize, step: usize| -> Vec<T> {
        (0..len).map(|i| T::from_f32((i * step % 1009) as f32 / 504.0 - 1.0)).collect()
    };
    let (q, dout) = (tensor(of_q, 7919), tensor(of_q, 15_485_863));
    let (k, v) = (tensor(of_k, 104_729), tensor(of_k, 1_299_709));
    let (mut out, mut lse) = (vec![T::default(); of_q], vec![0.0; shape.seqlen_q]);
    let [mut dq, mut dk, mut dv] = [of_q, of_k, of_k].map(|len| vec![T::default(); len]);
    let inputs = Inputs::new(
        TensorRef::bhsd(&q, shape.q()),
        TensorRef::bhsd(&k, shape.k()),
        TensorRef::bhsd(&v, shape.v()),
    );

    let before = start_counting();
    let mut outputs = Outputs::new(TensorMut::bhsd(&mut out, shape.out()), &mut lse);
    engine.forward(problem, &inputs, &mut outputs).expect("the tensors fit");
    let forward = ALLOCATED.peak_usage() - before;

    let before = start_counting();
    let grad_inputs = GradInputs::new(
        inputs,
        TensorRef::bhsd(&out, shape.out()),
        &lse,
        TensorRef::bhsd(&dout, shape.out()),
    );
    let mut gradients = Gradients::new(
        TensorMut::bhsd(&mut dq, shape.q()),
        TensorMut::bhsd(&mut dk, shape.k()),
        TensorMut::bhsd(&mut dv, shape.v()),
    );
    engine.backward(problem, &grad_inputs, &mut gradients).expect("the tensors fit");
    [forward, ALLOCATED.peak_usage() - before]
}

fn start_counting() -> usize {
    ALLOCATED.reset_peak_usage();
    ALLOCATED.current_usage()
}

#[test]
fn a_sequence_of_16384_takes_no_more_memory_than_one_of_4096() {
    let threads = rayon::current_num_threads();
    let (engine, two_passes) = (CpuEngine::new(), CpuEngine::new().with_partial_bytes(0));
    extra_bytes::<f32>([256, 256], engine); // rayon's own start
    let check = |name: &str, sizes: [usize; 2], [forward, backward]: [usize; 2], sums: usize| {
        let name = format!("{name} {sizes:?}");
        println!("{name}: forward {} KiB, backward {} KiB, {threads} threads", forward >> 10, backward >> 10);
        assert!(forward <= threads * MIB, "{name}: the forward took {forward} bytes");
        assert!(backward <= 3 * threads * MIB + sums, "{name}: the backward took {backward} bytes");
        assert!(backward < 64 * MIB || sums == 0, "{name}: the backward took {backward} bytes");
    };
    for sizes in sizes() {
        check("f32", sizes, extra_bytes::<f32>(sizes, engine), 0);
        check("bf16 in two passes", sizes, extra_bytes::<bf16>(sizes, two_passes), 0);
        // With partial sums of dq: one f32 per element of q on top, of one head.
        check("bf16", sizes, extra_bytes::<bf16>(sizes, engine), 4 * 64 * sizes[0]);
    }

    // A long sequence and many short ones side by side: some bytes for each, and nothing for what they are short of.
    let lengths: Vec<u32> = std::iter::once(4096).chain([3; 4096]).collect();
    let cu_seqlens: Vec<u32> = std::iter::once(0)
        .chain(lengths.iter().scan(0, |end, len| {
            *end += len;
            Some(*end)
        }))
        .collect();
    let packed =
        problem([16384; 2]).to_builder().packed(&cu_seqlens, &cu_seqlens).build().expect("a valid problem");
    let [forward, backward] = extra_bytes_of::<f32>(&packed, engine);
    println!("f32 packed: forward {} KiB, backward {} KiB", forward >> 10, backward >> 10);
    let of_sequences = lengths.len() * 64;
    assert!(forward <= threads * MIB + of_sequences, "packed: the forward took {forward} bytes");
    assert!(backward <= 3 * threads * MIB + of_sequences, "packed: the backward took {backward} bytes");
}

/// Queries and keys: many of either, and with `SIGNFLASH_TEST=full`, as in `.ci/run`, of both.
fn sizes() -> Vec<[usize; 2]> {
    let mut sizes = vec![[4096, 4096], [16384, 1024], [1024, 16384]];
    if matches!(std::env::var("SIGNFLASH_TEST").as_deref(), Ok("full" | "all")) {
        sizes.push([16384, 16384]);
    }
    sizes
}
