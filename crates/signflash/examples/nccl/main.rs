//! Ring attention on several GPUs of one host, over NCCL: `cargo run --release --features cuda --example nccl [libnccl.so.2]
//! [positions]`.
//!
//! Each GPU has a thread and some of the positions. Keys and values go round while they are used; what the queries of a rank
//! contribute to the gradients of keys follows them, and comes home in f32. Partial results are f32 and rounded once, and what is
//! dropped is what one GPU would drop. `ring.rs` is the same without GPUs. Here the sums are made on the host, which keeps
//! it short: it shows who needs what, not how fast it can be (docs/distributed.md has measurements of the Python package).

mod comm;

use comm::{Comm, Failed, Nccl, UniqueId, floats};
use signflash::prelude::*;
use signflash::{BackwardCall, DeviceBuffer, DeviceTensor, ForwardCall, Half, Order, Partial, Piece, Stored};
use std::ops::Range;
use std::time::Instant;

/// out, dq, dk and dv of a rank.
type Found = [Vec<f32>; 4];

/// A rank's own tensors: q, k, v and the gradient of out, (1, rows, heads, head_dim).
struct Own {
    q: DeviceBuffer,
    kv: [DeviceBuffer; 2],
    dout: DeviceBuffer,
}

struct Ring<'a> {
    rank: usize,
    ranks: usize,
    whole: &'a Problem,
    engine: CudaEngine,
    comm: Comm<'a>,
    /// Where NCCL works, beside the engine's own stream.
    sending: Stream,
}

fn dense(buffer: &DeviceBuffer, sizes: [usize; 4]) -> DeviceTensor {
    DeviceTensor::dense(buffer.ptr(), sizes, Order::RowsFirst)
}

impl Ring<'_> {
    fn positions(&self, rank: usize) -> Range<usize> {
        let count = self.whole.shape().seqlen_q / self.ranks;
        rank * count..(rank + 1) * count
    }

    fn owner(&self, step: usize) -> usize {
        (self.rank + self.ranks - step) % self.ranks
    }

    /// This rank's queries and the keys of another one, as a problem; nothing if all of these are hidden.
    fn piece(&self, owner: usize) -> Result<Option<Problem>, ProblemError> {
        let [rows, columns] = [self.rank, owner].map(|rank| self.positions(rank));
        let piece = self.whole.piece(&Piece { rows, columns, ..Piece::of(self.whole) })?;
        let last = piece.shape().seqlen_q as i64 - 1; // causal: it sees the most
        Ok((!piece.visibility().keys_of(last).is_empty()).then_some(piece))
    }

    /// Room for so many f32.
    fn room(&self, sizes: [usize; 4]) -> Result<DeviceBuffer, Failed> {
        Ok(DeviceBuffer::alloc(self.engine.device(), 4 * sizes.into_iter().product::<usize>())?)
    }

    fn upload<T: bytemuck::Pod>(&self, numbers: &[T]) -> Result<DeviceBuffer, Failed> {
        Ok(DeviceBuffer::from_host(self.engine.stream(), bytemuck::cast_slice(numbers))?)
    }

    /// Runs `compute` with the keys and values of each rank, while the next ones come.
    fn round(
        &self,
        own: &Own,
        mut compute: impl FnMut(usize, &[DeviceBuffer; 2]) -> Result<(), Failed>,
    ) -> Result<(), Failed> {
        let mut others: Option<[DeviceBuffer; 2]> = None;
        for step in 0..self.ranks {
            let kv = others.as_ref().unwrap_or(&own.kv);
            let coming = match step + 1 < self.ranks {
                true => Some(self.comm.pass_on(&self.sending, [&kv[0], &kv[1]])?),
                false => None,
            };
            compute(step, kv)?;
            self.sending.synchronize()?;
            others = coming;
        }
        Ok(())
    }

    /// out and lse of this rank's queries.
    fn forward(&self, own: &Own) -> Result<Partial, Failed> {
        let rows = self.positions(self.rank);
        let mut partial =
            Partial::of(&self.whole.piece(&Piece { rows: rows.clone(), ..Piece::of(self.whole) })?);
        self.round(own, |step, kv| {
            let Some(piece) = self.piece(self.owner(step))? else { return Ok(()) };
            let (shape, stream) = (*piece.shape(), self.engine.stream());
            let (out, lse) = (self.room(shape.out())?, self.room([1, 1, 1, shape.lse_len()])?);
            let inputs = [dense(&own.q, shape.q()), dense(&kv[0], shape.k()), dense(&kv[1], shape.v())];
            let call = ForwardCall::new(&piece, Half::Bf16, inputs, dense(&out, shape.out()), lse.ptr())
                .with_stored(Stored::Wide);
            // SAFETY: each buffer has the bytes of its tensor on this GPU, and lives until `floats` has waited below.
            unsafe { self.engine.forward_on(stream, &call) }?;
            partial.add(0..rows.len(), &floats(&out, stream)?, &floats(&lse, stream)?);
            Ok(())
        })?;
        Ok(partial)
    }

    /// dq of this rank's queries, dk and dv of its keys.
    fn backward(&self, own: &Own, forward: &Partial) -> Result<[Vec<f32>; 3], Failed> {
        let rounded: Vec<bf16> = forward.out.iter().map(|&x| bf16::from_f32(x)).collect();
        let (out, lse) = (self.upload(&rounded)?, self.upload(&forward.lse)?);
        let mut dq = vec![0.0f32; own.q.len_bytes() / 2];
        let mut arrived: Option<[DeviceBuffer; 2]> = None;
        self.round(own, |step, kv| {
            let stream = self.engine.stream();
            let mut sums = [0, 1].map(|i| vec![0.0f32; kv[i].len_bytes() / 2]);
            if let Some(piece) = self.piece(self.owner(step))? {
                let shape = *piece.shape();
                let inputs = [dense(&own.q, shape.q()), dense(&kv[0], shape.k()), dense(&kv[1], shape.v())];
                let gradients = [self.room(shape.q())?, self.room(shape.k())?, self.room(shape.v())?];
                let [of_q, of_k, of_v] = &gradients;
                let workspace = self.engine.backward_workspace_bytes(&piece, false) as usize;
                let workspace = DeviceBuffer::alloc(self.engine.device(), workspace)?;
                let forward =
                    ForwardCall::new(&piece, Half::Bf16, inputs, dense(&out, shape.out()), lse.ptr());
                let written = [dense(of_q, shape.q()), dense(of_k, shape.k()), dense(of_v, shape.v())];
                let call =
                    BackwardCall::of(&forward, dense(&own.dout, shape.out()), written, workspace.ptr());
                // SAFETY: as in `forward`; the workspace is as large as the engine asks.
                unsafe { self.engine.backward_on(stream, &call.with_stored([Stored::Wide; 2])) }?;
                add(&mut dq, &floats(of_q, stream)?);
                sums = [floats(of_k, stream)?, floats(of_v, stream)?];
            }
            // What other queries have contributed to these keys has come with them.
            if let Some(others) = &arrived {
                for (own, other) in sums.iter_mut().zip(others) {
                    add(own, &floats(other, stream)?);
                }
            }
            let sums = [self.upload(&sums[0])?, self.upload(&sums[1])?];
            arrived = Some(self.comm.pass_on(&self.sending, [&sums[0], &sums[1]])?);
            self.sending.synchronize()?; // after the last step they are at home
            Ok(())
        })?;
        let [dk, dv] = arrived.expect("there is a step");
        Ok([dq, floats(&dk, self.engine.stream())?, floats(&dv, self.engine.stream())?])
    }
}

fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

/// The whole problem, and its tensors on the host.
struct Given {
    problem: Problem,
    q: Vec<bf16>,
    k: Vec<bf16>,
    v: Vec<bf16>,
    dout: Vec<bf16>,
}

impl Given {
    fn new(seqlen: usize) -> Result<Self, ProblemError> {
        let shape = Shape::new(1, seqlen, seqlen).heads(4, 2).head_dim(128);
        let dropout = DropoutGenerator::new(42).next_dropout(0.1, &shape)?;
        let problem = Problem::builder(shape).causal(true).dropout(dropout).build()?;
        // No pattern that repeats, or sums would cancel.
        let numbers = |step: f64, sizes: [usize; 4]| {
            let number = |i: usize| ((i as f64 * step).sin() * 43758.5453).fract() * 3.0;
            (0..sizes.into_iter().product()).map(|i| bf16::from_f64(number(i))).collect::<Vec<_>>()
        };
        let (q, dout) = (numbers(12.9898, shape.q()), numbers(93.9895, shape.out()));
        Ok(Given { problem, q, k: numbers(78.233, shape.k()), v: numbers(39.425, shape.v()), dout })
    }

    /// A rank's share: the batch is one, so that its positions lie together.
    fn share<'a>(&self, x: &'a [bf16], rank: usize, ranks: usize) -> &'a [bf16] {
        &x[x.len() / ranks * rank..x.len() / ranks * (rank + 1)]
    }

    fn rank(&self, nccl: &Nccl, id: UniqueId, rank: usize, ranks: usize) -> Result<Found, Failed> {
        let engine = CudaEngine::new(&Device::open(rank as u32)?)?;
        let comm = Comm::new(nccl, id, (rank, ranks), engine.device())?;
        let sending = Stream::new(engine.device())?;
        let ring = Ring { rank, ranks, whole: &self.problem, engine, comm, sending };
        let [q, k, v, dout] =
            [&self.q, &self.k, &self.v, &self.dout].map(|x| ring.upload(self.share(x, rank, ranks)));
        let own = Own { q: q?, kv: [k?, v?], dout: dout? };
        let began = Instant::now();
        let forward = ring.forward(&own)?;
        let [dq, dk, dv] = ring.backward(&own, &forward)?;
        println!(
            "rank {rank} of {ranks}: {:.0} ms, kernels compiled and sums on the host included",
            1e3 * began.elapsed().as_secs_f64()
        );
        Ok([forward.out, dq, dk, dv])
    }
}

fn main() -> Result<(), Failed> {
    let mut words = std::env::args().skip(1);
    let nccl = Nccl::load(words.next().as_deref())?;
    let seqlen = words.next().map_or(Ok(4096), |word| word.parse())?;
    let (given, ranks) = (Given::new(seqlen)?, Device::count()? as usize);
    let shape = *given.problem.shape();
    assert!(seqlen % (32 * ranks) == 0, "each of {ranks} ranks has as many positions, a multiple of 32");

    let id = nccl.unique_id()?;
    let found = std::thread::scope(|scope| {
        let (given, nccl) = (&given, &nccl);
        let threads: Vec<_> =
            (0..ranks).map(|rank| scope.spawn(move || given.rank(nccl, id, rank, ranks))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank ends")).collect::<Result<Vec<_>, _>>()
    })?;

    let engine = CudaEngine::new(&Device::open(0)?)?;
    let Given { problem, q, k, v, dout } = &given;
    let inputs = Inputs::new(
        TensorRef::bshd(q, shape.q()),
        TensorRef::bshd(k, shape.k()),
        TensorRef::bshd(v, shape.v()),
    );
    let attended = attention_with(engine, problem, inputs)?;
    let one = attended.backward(dout)?;
    for (i, (name, one)) in
        [("out", &attended.out), ("dq", &one.dq), ("dk", &one.dk), ("dv", &one.dv)].into_iter().enumerate()
    {
        let got = found.iter().flat_map(|rank| &rank[i]);
        let (mut off, mut norm) = (0.0f64, 0.0f64);
        for (got, one) in got.zip(one) {
            off += f64::from(got - one.to_f32()).powi(2);
            norm += f64::from(one.to_f32()).powi(2);
        }
        let error = (off / norm).sqrt();
        println!("{name} of {ranks} GPUs next to that of one: {error:.1e} off");
        assert!(error < 8e-3, "{name}: both are within 4e-3 of the formulas");
    }
    Ok(())
}
