//! Where rows of an accumulator are keys: of a group of 8 columns a lane has two neighbouring queries, of two keys.
//!
//! Neighbours in memory are keys, so a lane reads two keys of one query, in the order of an accumulator whose rows are
//! queries, and 8 by 8 of these 16-bit numbers are transposed between lanes (`movmatrix`) when they are used. What is
//! not read two at once, and f32, is read one by one.
use super::numbers::{Two, load_one, load_two};
use super::{Both, Overlay, OverlayOf, OverlayVals};
use crate::config::{Numbers, OverlayKind};
use crate::parts::args::ScoreTensorVals;
use crate::parts::hiding::first_column;
use crate::parts::sequence::Sequence;
use signflash_ptx::{B32, GlobalAddr, U32, U64, Val, Var, Warp};

/// What is added to the scores of a warp's 16 keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByKeys<'k> {
    warp: Warp<'k>,
    tensors: Both<Columns<'k>>,
}

/// A lane's columns of a tensor.
#[derive(Clone, Copy, Debug)]
struct Columns<'k> {
    kind: OverlayKind,
    tensor: ScoreTensorVals<'k>,
    /// Where the matrix of the sequence's first head begins.
    matrix: Val<'k, U64>,
    /// Of the warp's keys, whether all are the tensor's; if it matters.
    inside: Option<Val<'k, U32>>,
    /// Bytes from a row's first number to those that the lane reads of it: of the first 8 keys, and of the others.
    offsets: [Val<'k, U64>; 2],
}

/// What was read of a tile of queries.
#[derive(Debug)]
pub(crate) struct QueriesRead<'k> {
    warp: Warp<'k>,
    tensors: Both<Read<'k>>,
}

/// Of one tensor.
#[derive(Debug)]
enum Read<'k> {
    /// Of both keys, whatever the query.
    PerKey(OverlayKind, [Val<'k, B32>; 2]),
    /// For each group of 8 columns, for each of both keys, the two queries' numbers.
    Apart(OverlayKind, Vec<[Two<'k>; 2]>),
    /// For each group of 8 columns and each 8 keys, of query lane / 4 two keys.
    Across(OverlayKind, Vec<[Var<'k, B32>; 2]>),
}

impl<'k> ByKeys<'k> {
    /// Of the 16 keys from `first_key` on.
    #[track_caller]
    pub(crate) fn new(
        warp: Warp<'k>,
        overlays: &OverlayVals<'k>,
        sequence: Sequence<'k>,
        first_key: Val<'k, U32>,
    ) -> Self {
        let t = warp.threads();
        let tensors = overlays.tensors(|kind, tensor| {
            let (offsets, inside) = if kind.is_transposed() {
                let own = first_key + first_column(t);
                let offset = |key: Val<'k, U32>| (key.min(tensor.columns - 2) * kind.numbers.bytes()).widen();
                let columns = tensor.columns;
                let inside = first_key.lt(columns) & (first_key + 16).le(columns);
                ([offset(own), offset(own + 8)], Some(inside.select(t.u32(1), t.u32(0))))
            } else {
                let own = first_key + (t.lane() >> 2);
                let offset = |key: Val<'k, U32>| key.min(tensor.columns - 1).widen() * tensor.column;
                ([offset(own), offset(own + 8)], None)
            };
            let matrix = overlays.matrix(tensor, sequence, t.u32(0));
            Columns { kind, tensor: *tensor, matrix, inside, offsets }
        });
        ByKeys { warp, tensors }
    }

    /// Starts to read what belongs to a tile of `columns` queries of a head, from `first` on.
    #[track_caller]
    pub(crate) fn read(&self, head: Val<'k, U32>, first: Val<'k, U32>, columns: u32) -> QueriesRead<'k> {
        QueriesRead {
            warp: self.warp,
            tensors: self.tensors.map(|tensor| tensor.read(self.warp, head, first, columns)),
        }
    }
}

impl<'k> Columns<'k> {
    fn read(&self, warp: Warp<'k>, head: Val<'k, U32>, first: Val<'k, U32>, columns: u32) -> Read<'k> {
        let (t, kind, tensor) = (warp.threads(), self.kind, &self.tensor);
        let matrix = head.widen().mul_add(tensor.head, self.matrix);
        let one = |start: Val<'k, U64>, h: usize| {
            load_one(t, kind.numbers, GlobalAddr::new(start + self.offsets[h]))
        };
        if kind.per_key {
            return Read::PerKey(kind, [0, 1].map(|h| one(matrix, h)));
        }
        let groups = 0..columns / 8;
        match self.inside {
            None => {
                let own = first + first_column(t);
                let pairs = |group: u32| {
                    let rows = [0, 1].map(|x| matrix + tensor.row_bytes(own + (8 * group + x)));
                    [0, 1].map(|h| Two::Apart(rows.map(|row| one(row, h))))
                };
                Read::Apart(kind, groups.map(pairs).collect())
            }
            Some(keys_inside) => {
                let own = first + (t.lane() >> 2);
                let mut read: Vec<[Var<'k, B32>; 2]> = vec![];
                let two = |from| load_two(t, kind.numbers, from).words()[0];
                // Of a tile that lies inside, all lie at equal distances.
                let rows = tensor.rows;
                let inside = keys_inside.ne(0) & first.lt(rows) & (first + columns).le(rows);
                warp.when(inside, |_| {
                    let mut row = matrix + own.widen() * tensor.row + self.offsets[0];
                    let step = tensor.row * 8u64;
                    for group in groups.clone() {
                        let from = GlobalAddr::new(row);
                        let second = i64::from(8 * kind.numbers.bytes());
                        read.push([from, from.at(second)].map(|from| two(from).var()));
                        if group + 1 < columns / 8 {
                            row = row + step;
                        }
                    }
                });
                warp.when(!inside, |_| {
                    for (group, words) in groups.zip(&read) {
                        let row = matrix + tensor.row_bytes(own + 8 * group);
                        for (word, offset) in words.iter().zip(self.offsets) {
                            word.set(two(GlobalAddr::new(row + offset)));
                        }
                    }
                });
                Read::Across(kind, read)
            }
        }
    }
}

impl<'k> OverlayOf<'k> for QueriesRead<'k> {
    fn of(&self, group: usize) -> [Overlay<'k>; 4] {
        let pairs = self.tensors.map(|read| read.pairs(self.warp, group));
        [0, 1, 2, 3].map(|register| {
            let (h, x) = (register / 2, register % 2);
            let number = pairs.bias.map(|(kind, pairs)| pairs[h].number(kind, x));
            Overlay::of(number, pairs.mask.map(|(_, pairs)| pairs[h].is_set(x)))
        })
    }
}

impl<'k> Read<'k> {
    /// For each of both keys the two queries' numbers of a group.
    fn pairs(&self, warp: Warp<'k>, group: usize) -> (OverlayKind, [Two<'k>; 2]) {
        match self {
            Read::PerKey(kind, keys) => (*kind, keys.map(|key| Two::Apart([key, key]))),
            Read::Apart(kind, pairs) => (*kind, pairs[group]),
            Read::Across(kind, words) => {
                let pairs = words[group].each_ref().map(|word| {
                    let word = match kind.numbers {
                        // A byte becomes a number of 16 bits, of which the upper ones are zeros.
                        Numbers::Bytes => word.get().permute(0u32, 0x4140u32),
                        _ => word.get(),
                    };
                    Two::Halves(warp.transpose(word))
                });
                (*kind, pairs)
            }
        }
    }
}
