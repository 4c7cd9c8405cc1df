//! A line for each of many calls: what is called, and the SHA-256 of its launches, which are kernels' names, grids
//! and arguments. Whether a change of the choice of kernels or of their arguments is neutral is seen by comparing two
//! lists: `cargo run -p signflash-kernels --example plans > plans.txt`, before and after. With `--launches` the
//! launches are printed instead of their hash.
use sha2::{Digest, Sha256};
use signflash_core::{Dropout, Problem, Shape, Shard};
use signflash_kernels::{
    BackwardCall, BackwardChoice, CallError, DeviceTensor, ForwardCall, ForwardChoice, Gpu, Half, Kernels,
    Order, Task, backward_workspace_bytes,
};

/// One block at a time, too, for whom tiles are shared out in another way.
const GPUS: [Gpu; 4] = [Gpu::HOPPER, Gpu::AMPERE, Gpu::SMALL, Gpu { sm_count: 1, ..Gpu::HOPPER }];

/// On both sides of where rows of the tables, boxes and pieces of 16 bytes end.
const HEAD_DIMS: [usize; 12] = [8, 32, 41, 64, 72, 80, 96, 120, 128, 136, 192, 256];

/// causal, dropout_p, softmax_scale.
const SETTINGS: [(bool, f32, f64); 4] =
    [(false, 0.0, 0.1), (true, 0.0, 0.1), (false, 0.1, 0.5), (true, 0.17, -0.25)];

/// Small and empty ones, head groups, many tiles, and one that is too large for a launch.
fn shapes() -> [Shape; 8] {
    [
        Shape::new(1, 1, 1).heads(1, 1),
        Shape::new(2, 100, 150).heads(4, 2),
        Shape::new(3, 0, 17).heads(2, 2),
        Shape::new(1, 17, 0).heads(2, 1),
        Shape::new(1, 3000, 2048).heads(8, 8),
        Shape::new(2, 5000, 4096).heads(6, 3),
        Shape::new(1, 20000, 20000).heads(2, 2),
        Shape::new(70000, 1, 1).heads(40000, 40000),
    ]
}

/// The whole; inside a block of rows; at blocks' ends; inside blocks of rows and columns.
fn shards() -> [Shard; 4] {
    let whole = Shard::default();
    let far = Shard { first_batch: 1, first_head: 2, num_heads_total: Some(40009), ..whole };
    [
        whole,
        Shard { first_row: 8, ..whole },
        Shard { first_row: 32, first_column: 64, ..far },
        Shard { first_row: 5, first_column: 7, ..whole },
    ]
}

/// left and right side of a window, and the key that query 0 faces: both sides, wide ones, single ones, some that hide
/// nothing or everything.
const WINDOWS: [(Option<usize>, Option<usize>, Option<i64>); 9] = [
    (Some(100), Some(0), None),
    (Some(40), Some(17), None),
    (Some(2000), Some(0), None),
    (Some(30), None, None),
    (None, Some(7), None),
    (Some(1 << 40), Some(1 << 40), None),
    (None, Some(0), Some(-60)),
    (Some(64), Some(5), Some(90)),
    (Some(10), Some(10), Some(-100_000)),
];

/// Windows and explicit diagonals, with dropout and without.
fn windows() -> impl Iterator<Item = Problem> {
    let shapes =
        [64, 128, 192].into_iter().flat_map(|head_dim| shapes().map(|shape| shape.head_dim(head_dim)));
    let settings = shapes.flat_map(|shape| WINDOWS.map(|window| (shape, window)));
    let all = settings.flat_map(|settings| [0.0, 0.1].map(|dropout_p| (settings, dropout_p)));
    all.map(|((shape, (left, right, diagonal)), dropout_p)| {
        let dropout = Dropout::new(dropout_p, 77, 5).expect("a probability");
        let problem = Problem::builder(shape).window(left, right).dropout(dropout);
        let problem = diagonal.map_or(problem.clone(), |diagonal| problem.diagonal(diagonal));
        problem.build().expect("sizes that fit")
    })
}

fn problems() -> impl Iterator<Item = Problem> {
    let shapes = HEAD_DIMS.into_iter().flat_map(|head_dim| shapes().map(|shape| shape.head_dim(head_dim)));
    let settings = shapes.flat_map(|shape| SETTINGS.map(|settings| (shape, settings)));
    let all = settings.flat_map(|(shape, settings)| shards().map(|shard| (shape, settings, shard)));
    all.map(|(shape, (causal, dropout_p, scale), shard)| {
        let dropout = Dropout::new(dropout_p, 77, 5).expect("a probability");
        let problem =
            Problem::builder(shape).causal(causal).dropout(dropout).softmax_scale(scale).shard(shard);
        problem.build().expect("sizes that fit")
    })
}

/// Says what a call is launched with.
struct Say {
    launches: bool,
}

impl Say {
    fn call(&self, what: &str, (gpu, problem): (&Gpu, &Problem), tasks: Result<Vec<Task>, CallError>) {
        let described = |tasks: Vec<Task>| tasks.iter().map(described).collect();
        let text = tasks.map_or_else(|error| error.to_string(), described);
        let hash = || Sha256::digest(&text).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        println!(
            "{gpu}, {} SMs, {problem:?}, {what}: {}",
            gpu.sm_count,
            if self.launches { text.clone() } else { hash() }
        );
    }

    /// Every call of a problem, of tensors that begin so many bytes behind a multiple of 16.
    fn calls(&self, gpu: &Gpu, problem: &Problem, off: u64) {
        let shape = problem.shape();
        let tensor = |number: u64, sizes| DeviceTensor::dense((number << 40) + off, sizes, Order::RowsFirst);
        let inputs = [tensor(1, shape.q()), tensor(2, shape.k()), tensor(3, shape.v())];
        let forward = ForwardCall::new(problem, Half::Bf16, inputs, tensor(4, shape.out()), 64);
        let forward = forward.with_seed_and_offset_ptr(3);
        let probs = DeviceTensor::dense(5 << 40, shape.probs(), Order::HeadsFirst);
        for probs in [None, Some(probs)] {
            let call = forward.with_probs(probs);
            let tasks = ForwardChoice::of(&call, *gpu, Kernels::Best).tasks();
            self.call(&format!("off {off}, forward, probs {}", probs.is_some()), (gpu, problem), tasks);
        }
        let backward = BackwardCall::of(&forward, tensor(6, shape.out()), inputs, 7 << 40).with_dlse(Some(9));
        for kernels in [Kernels::Best, Kernels::Portable] {
            for deterministic in [false, true] {
                let call = backward.with_deterministic(deterministic);
                let bytes = backward_workspace_bytes(problem, *gpu, deterministic);
                let what =
                    format!("off {off}, backward, deterministic {deterministic}, {kernels:?}, {bytes} bytes");
                self.call(&what, (gpu, problem), BackwardChoice::of(&call, *gpu, kernels).tasks());
            }
        }
    }
}

fn described(task: &Task) -> String {
    match task {
        Task::Launch { config, grid, args } => format!("{config} {grid} {args:?}; "),
        Task::Zero { ptr, bytes } => format!("zero {ptr} {bytes}; "),
    }
}

fn main() {
    let say = Say { launches: std::env::args().any(|word| word == "--launches") };
    let all = || problems().chain(windows());
    for (gpu, problem) in GPUS.iter().flat_map(|gpu| all().map(move |problem| (gpu, problem))) {
        [0, 2].into_iter().for_each(|off| say.calls(gpu, &problem, off));
    }
}
