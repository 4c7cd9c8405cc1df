//! Where rows of an accumulator are queries: of a group of 8 columns a lane has two neighbouring keys, of two queries.
use super::numbers::{Two, load_one, load_two};
use super::{Both, Overlay, OverlayOf, OverlayVals};
use crate::config::OverlayKind;
use crate::parts::args::ScoreTensorVals;
use crate::parts::hiding::first_column;
use crate::parts::sequence::Sequence;
use crate::parts::softmax::THREAD_ROWS;
use signflash_ptx::{B32, GlobalAddr, Thread, U32, U64, Val, Var, Warp};

/// What is added to the scores of a lane's two queries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByQueries<'k> {
    warp: Warp<'k>,
    tensors: Both<Rows<'k>>,
    queries: [Val<'k, U32>; THREAD_ROWS],
    packed: bool,
}

/// A lane's rows of a tensor.
#[derive(Clone, Copy, Debug)]
struct Rows<'k> {
    kind: OverlayKind,
    tensor: ScoreTensorVals<'k>,
    /// Where they begin; one row if all are the same.
    starts: [Val<'k, U64>; THREAD_ROWS],
}

/// What was read of a tile of keys.
#[derive(Debug)]
pub(crate) struct KeysRead<'k> {
    tensors: Both<Read<'k>>,
    /// Of each query, if some may lie behind the tensors' last.
    queries: Option<[[Val<'k, U32>; 2]; THREAD_ROWS]>,
}

/// Of one tensor: for each group of 8 columns, and each of the rows that are not the same.
#[derive(Debug)]
struct Read<'k> {
    kind: OverlayKind,
    pairs: Vec<Vec<(Two<'k>, Vec<Var<'k, B32>>)>>,
}

impl<'k> ByQueries<'k> {
    /// Of these queries of a head.
    #[track_caller]
    pub(crate) fn new(
        warp: Warp<'k>,
        overlays: &OverlayVals<'k>,
        (sequence, head): (Sequence<'k>, Val<'k, U32>),
        queries: [Val<'k, U32>; THREAD_ROWS],
    ) -> Self {
        let tensors = overlays.tensors(|kind, tensor| {
            let matrix = overlays.matrix(tensor, sequence, head);
            let start =
                |query: Val<'k, U32>| if kind.per_key { matrix } else { matrix + tensor.row_bytes(query) };
            Rows { kind, tensor: *tensor, starts: queries.map(start) }
        });
        ByQueries { warp, tensors, queries, packed: overlays.packed }
    }

    /// Starts to read what belongs to a tile of `columns` keys, from `first` on.
    #[track_caller]
    pub(crate) fn read(&self, first: Val<'k, U32>, columns: u32) -> KeysRead<'k> {
        let tensors = self.tensors.map(|rows| rows.read(self.warp, first, columns));
        let rows = self.tensors.map(|rows| (!rows.kind.per_key).then_some(rows.tensor.rows));
        let rows: Vec<_> = [rows.bias, rows.mask].into_iter().flatten().flatten().collect();
        let least = rows.into_iter().reduce(|a, b| a.min(b)).filter(|_| self.packed);
        KeysRead { tensors, queries: least.map(|rows| self.queries.map(|query| [query, rows])) }
    }
}

impl<'k> Rows<'k> {
    fn read(&self, warp: Warp<'k>, first: Val<'k, U32>, columns: u32) -> Read<'k> {
        let (t, kind) = (warp.threads(), self.kind);
        let own = first + first_column(t);
        let count = if kind.per_key { 1 } else { THREAD_ROWS };
        let groups = columns as usize / 8;
        if !kind.pairs {
            let pairs = |group: usize| {
                let ones =
                    |row: usize| Two::Apart([0, 1].map(|x| self.one(t, row, own + (8 * group as u32 + x))));
                (0..count).map(|row| (ones(row), vec![])).collect()
            };
            return Read { kind, pairs: (0..groups).map(pairs).collect() };
        }
        let bytes = kind.numbers.bytes();
        let near = [0, 1].map(|row| GlobalAddr::new(self.starts[row] + (own * bytes).widen()));
        // Of a tile that lies inside, all lie at known distances from the first.
        let inside = first.lt(self.tensor.columns) & (first + columns).le(self.tensor.columns);
        let mut pairs: Vec<Vec<(Two<'k>, Vec<Var<'k, B32>>)>> = vec![];
        warp.when(inside, |warp| {
            for group in 0..groups {
                let at = i64::from(8 * group as u32 * bytes);
                let two = |row: usize| kept(load_two(warp.threads(), kind.numbers, near[row].at(at)));
                pairs.push((0..count).map(two).collect());
            }
        });
        warp.when(!inside, |warp| {
            for (group, pairs) in pairs.iter().enumerate() {
                let key = (own + 8 * group as u32).min(self.tensor.columns - 2);
                for (row, (_, words)) in pairs.iter().enumerate() {
                    let from = GlobalAddr::new(self.starts[row] + (key * bytes).widen());
                    let read = load_two(warp.threads(), kind.numbers, from).words();
                    words.iter().zip(read).for_each(|(word, read)| word.set(read));
                }
            }
        });
        Read { kind, pairs }
    }

    /// The number of a row and a key.
    fn one(&self, t: Thread<'k>, row: usize, key: Val<'k, U32>) -> Val<'k, B32> {
        let column = key.min(self.tensor.columns - 1).widen();
        load_one(t, self.kind.numbers, GlobalAddr::new(column.mul_add(self.tensor.column, self.starts[row])))
    }
}

/// Keeps what was read in registers that another way may write, too.
fn kept<'k>(two: Two<'k>) -> (Two<'k>, Vec<Var<'k, B32>>) {
    let words = two.words().into_iter().map(Val::var).collect();
    (two, words)
}

impl<'k> OverlayOf<'k> for KeysRead<'k> {
    fn of(&self, group: usize) -> [Overlay<'k>; 4] {
        std::array::from_fn(|register| {
            let (row, x) = (register / 2, register % 2);
            let Both { bias, mask } = self.tensors.map(|read| (read.kind, read.two(group, row)));
            let inside = self.queries.map(|queries| queries[row][0].lt(queries[row][1]));
            let mask =
                [mask.map(|(_, two)| two.is_set(x)), inside].into_iter().flatten().reduce(|a, b| a & b);
            Overlay::of(bias.map(|(kind, two)| two.number(kind, x)), mask)
        })
    }
}

impl<'k> Read<'k> {
    fn two(&self, group: usize, row: usize) -> Two<'k> {
        let pairs = &self.pairs[group];
        let (two, words) = &pairs[row.min(pairs.len() - 1)];
        let now: Vec<_> = words.iter().map(Var::get).collect();
        if now.is_empty() { *two } else { two.with_words(&now) }
    }
}
