//! Probes of copies of boxes of tensors.
use super::{Buffer, Plan, Probe};
use crate::build::{Cta, Thread, TileLayout, Val};
use crate::tensor_map::TensorMap;
use crate::types::{B32, U32};

const THREADS: u32 = 128;
const ROWS: u32 = 16;
/// Words of a box's row.
const ROW_WORDS: u32 = TensorMap::BOX_COLUMNS / 2;
/// Words of a tensor's buffer.
const WORDS: usize = 4096;

/// 100 columns of 9 rows, twice, twice, with gaps behind each.
const READ: TensorMap = TensorMap {
    base: 32,
    dims: [100, 9, 2, 2],
    strides_bytes: [208, 2000, 4096],
    box_rows: ROWS,
    wraps: false,
};

/// The same with 88 columns: rows that are stored consist of pieces of 8.
const WRITTEN: TensorMap = TensorMap { dims: [88, 9, 2, 2], ..READ };

pub(super) fn probes() -> Vec<Probe> {
    vec![
        load("in the middle", [0, 2, 1, 1]),
        load("before the first row", [64, -5, 0, 1]),
        load("nowhere", [0, 3, 2, 0]),
        store("over the last row", [0, 4, 1, 0]),
        store("over the last column", [64, 0, 0, 1]),
    ]
}

/// The word of a buffer that holds a pair of columns, if the tensor has it.
fn word_of(map: &TensorMap, [column, row, c2, c3]: [i64; 4]) -> Option<usize> {
    let inside = |c: i64, dim: u64| (0..dim as i64).contains(&c);
    let all = [column, row, c2, c3].into_iter().zip(map.dims).all(|(c, dim)| inside(c, dim));
    let [s1, s2, s3] = map.strides_bytes.map(|stride| stride as i64);
    all.then(|| (map.base as i64 + 2 * column + row * s1 + c2 * s2 + c3 * s3) as usize / 4)
}

/// For each word of a box the tensor's.
fn words_of(map: &TensorMap, at: [i64; 4]) -> impl Iterator<Item = Option<usize>> {
    let [column, row, c2, c3] = at;
    (0..i64::from(ROWS * ROW_WORDS)).map(move |i| {
        let (r, pair) = (i / i64::from(ROW_WORDS), i % i64::from(ROW_WORDS));
        word_of(map, [column + 2 * pair, row + r, c2, c3])
    })
}

/// A thread's share of a box: `each(word of the box, where it lies)` for each.
fn for_each_word<'k>(t: Thread<'k>, mut each: impl FnMut(Val<'k, U32>, Val<'k, U32>)) {
    let layout = TileLayout::new(TensorMap::BOX_COLUMNS);
    for i in 0..ROWS * ROW_WORDS / THREADS {
        let word = t.index() + i * THREADS;
        let (row, pair) = (word >> 5u32, word & 31);
        each(word * 4, layout.chunk(row, (pair >> 2u32).cast::<B32>()) + (pair & 3) * 4);
    }
}

fn coordinates<'k>(t: Thread<'k>, at: [i64; 4]) -> (u32, [Val<'k, U32>; 3]) {
    (at[0] as u32, [1, 2, 3].map(|i| t.u32(at[i] as i32 as u32)))
}

/// One thread loads a box; everybody copies it to the output, row by row.
fn load(what: &str, at: [i64; 4]) -> Probe {
    let words = move |input: &[u32]| -> Vec<u32> {
        let marked = words_of(&READ, at).map(|word| word.map_or(0, |word| input[word]));
        marked.map(|word| word.wrapping_add(1)).collect()
    };
    let plan = Plan::new(&format!("cp.async.bulk.tensor load, {what}"), THREADS);
    let plan = plan.sizes(WORDS, (ROWS * ROW_WORDS) as usize).tensor(Buffer::Input, READ);
    plan.build(words, |cta: Cta<'_>, io| {
        let (t, w) = (cta.threads(), cta.warps());
        let ring = cta.bulk_ring("box", 1, READ.box_bytes(), THREADS / 32);
        cta.sync();
        let tensor = io.tensor.expect("planned");
        let (mut producer, mut consumer) = (ring.producer(t), ring.consumer(w));
        // The box twice, so that its place is used again.
        let round = t.u32(0).var();
        w.while_(
            || round.get().lt(2),
            |w| {
                t.when(t.index().eq(0), |t| {
                    let (column, others) = coordinates(t, at);
                    producer.fill_by(t, |filling| filling.load(t, 0, tensor.at(column, others)));
                });
                let stage = consumer.wait(w);
                for_each_word(t, |word, place| {
                    let [x] = t.load::<U32, 1>(stage.address().plus(place));
                    t.store(io.output.plus(word.widen()), [x + 1]); // so that zeros are seen to be written
                });
                stage.release(w);
                round.set(round.get() + 1);
            },
        );
    })
}

/// Everybody fills a box; one thread stores it.
fn store(what: &str, at: [i64; 4]) -> Probe {
    let words = move |input: &[u32]| -> Vec<u32> {
        let mut output = vec![0; WORDS];
        for (from, to) in words_of(&WRITTEN, at).enumerate() {
            to.into_iter().for_each(|to| output[to] = input[from]);
        }
        output
    };
    let plan = Plan::new(&format!("cp.async.bulk.tensor store, {what}"), THREADS);
    let plan = plan.sizes((ROWS * ROW_WORDS) as usize, WORDS).tensor(Buffer::Output, WRITTEN);
    plan.build(words, |cta: Cta<'_>, io| {
        let t = cta.threads();
        let place = cta.smem("box", WRITTEN.box_bytes(), 1024);
        for_each_word(t, |word, own| {
            t.store(place.plus(own), t.load::<U32, 1>(io.input.plus(word.widen())));
        });
        t.fence_proxy_async();
        cta.sync();
        let tensor = io.tensor.expect("planned");
        t.when(t.index().eq(0), |t| {
            let (column, others) = coordinates(t, at);
            t.store_boxes([(place, tensor.at(column, others))]);
            t.wait_stored();
        });
    })
}
