//! What kernels are told of every entry, with each side of the band there or not, against core's numbers.
use super::{Position, Sight};
use crate::parts::args::{ProblemArgs, ProblemVals};
use crate::parts::hiding::{SeeingColumns, SeenKeys, first_column, hide, hide_keys};
use signflash_core::Visibility;
use signflash_ptx::{
    Arg, Builder, Cta, F32, Global, GlobalAddr, Kernel, Launch, LaunchBounds, Pred, U32, Val,
};
use std::array::from_fn;

/// Queries, and keys, of a tile.
const TILE: u32 = 16;

/// Tiles in each direction.
const TILES: u32 = 3;

/// What a block writes of its tile: all entries, rows being queries; all, rows being keys; and what it knows of tiles.
const ENTRIES: usize = (TILE * TILE) as usize;
const WORDS: usize = 2 * ENTRIES + Told::COUNT;

/// What a block is told of its tile of queries and its tile of keys.
struct Told {
    key_tiles: [u32; 2],
    query_tiles: [u32; 2],
    is_edge: bool,
    hides_some: bool,
    last_key_tile: u32,
}

impl Told {
    const COUNT: usize = 7;

    fn from_words(words: &[u32]) -> Self {
        let [a, b, c, d, e, f, last_key_tile] = from_fn(|i| words[i]);
        Told { key_tiles: [a, b], query_tiles: [c, d], is_edge: e == 1, hides_some: f == 1, last_key_tile }
    }
}

/// A band as the kernel is built and launched for it.
#[derive(Clone, Copy, Debug)]
struct Case {
    band: Visibility<i64>,
    shifts: [u32; 2],
}

fn kernel(left: bool, right: bool) -> Kernel {
    let bounds = LaunchBounds { block_threads: 32, min_blocks_per_sm: 1 };
    Builder::build("sights", bounds, |cta| {
        let problem = ProblemVals::declare(cta);
        let (to, t) = (cta.param_u64("to"), cta.threads());
        let [diagonal, left_of, right_of] =
            ["diagonal", "left", "right"].map(|name| Position::computed(t, cta.param_u32(name)));
        let computed = |value| Position::computed(t, value);
        let visibility = Visibility {
            left: left.then_some(left_of),
            right: right.then_some(right_of),
            diagonal,
            queries: computed(problem.seqlen_q),
            keys: computed(problem.seqlen_k),
        };
        let sight = Sight { t, visibility, range: None, shifts: [problem.row_shift, problem.column_shift] };
        let to = cta.index().widen().mul_add(4 * WORDS as u64, to);
        write_tile(cta, &sight, GlobalAddr::new(to));
    })
}

fn write_tile<'k>(cta: Cta<'k>, sight: &Sight<'k>, to: GlobalAddr<'k>) {
    let (warp, t) = (cta.warps(), cta.threads());
    let [m, n] = [cta.index() / TILES, cta.index() - cta.index() / TILES * TILES];
    let (first_query, first_key) = (m * TILE - sight.shifts[0], n * TILE - sight.shifts[1]);
    let row = |lower: usize| (t.lane() >> 2) + 8 * lower as u32;
    let ones = || {
        let acc = warp.acc(TILE);
        (0..2).flat_map(|group| (0..4).map(move |r| (group, r))).for_each(|(g, r)| acc.at(g, r).set(1.0f32));
        acc
    };
    let (of_queries, of_keys) = (ones(), ones());
    let seen: [_; 2] = from_fn(|lower| SeenKeys::of(sight, first_query + row(lower)));
    hide_keys(&of_queries, &seen, first_key + first_column(t), 0.0);
    let seeing: [_; 2] =
        from_fn(|lower| SeeingColumns::of(sight, first_key + row(lower), first_query + first_column(t)));
    hide(&[&of_keys], 0.0, |row, column| seeing[row].contains(column));
    for (place, acc) in [(0, of_queries), (ENTRIES as u32, of_keys)] {
        for (group, register) in (0..2).flat_map(|group| (0..4).map(move |r| (group, r))) {
            let column = first_column(t) + (8 * group + register % 2) as u32;
            let entry = row(register / 2) * TILE + column + place;
            t.store::<F32, 1>(to.plus((entry * 4).widen()), [acc.at(group, register).get()]);
        }
    }
    let keys = sight.key_tiles(first_query, TILE, TILE);
    let queries = sight.query_tiles(first_key, TILE, TILE);
    let number = |cond: Val<'k, Pred>| cond.select::<U32>(1u32, 0u32);
    let told = [
        keys.begin.unsigned(),
        keys.end,
        queries.begin,
        queries.end,
        number(keys.is_edge(n)),
        number(sight.hides_some_of([first_query, first_key], [TILE, TILE])),
        sight.last_key_tile(first_query + (TILE - 1), TILE),
    ];
    for (i, word) in told.into_iter().enumerate() {
        t.when(t.lane().eq(0), |t| t.store(to.at(4 * (2 * ENTRIES + i) as i64), [word]));
    }
}

/// What all blocks have written.
fn run(kernel: &Kernel, case: &Case) -> Vec<u32> {
    let Case { band, shifts: [row_shift, column_shift] } = *case;
    let mut memory = Global::default();
    let to = memory.reserve("to", 4 * WORDS * (TILES * TILES) as usize);
    let mut args = vec![];
    ProblemArgs {
        seqlen_q: band.queries as u32,
        seqlen_k: band.keys as u32,
        num_heads: 1,
        num_heads_k: 1,
        group_size: 1,
        head_dim: 16,
        scale: 1.0,
        scale_log2: 1.0,
        row_shift,
        column_shift,
        stat_rows: 128,
    }
    .push(&mut args);
    args.push(Arg::U64(to.0));
    let sides = [band.diagonal, band.left.unwrap_or(0), band.right.unwrap_or(0)];
    args.extend(sides.map(|side| Arg::U32(side as u32)));
    kernel.interpret(&Launch { grid: TILES * TILES, args: &args, seed: 0 }, &mut memory).unwrap();
    memory.bytes(to).chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// How many tiles are seen whole.
fn check(kernel: &Kernel, case: &Case) -> usize {
    let Case { band, shifts } = *case;
    let sees = |i: i64, j: i64| band.keys_of(i).contains(j);
    let shifts = shifts.map(i64::from);
    let tile = i64::from(TILE);
    let words = run(kernel, case);
    let mut whole = 0;
    let (mut looking, mut last_key_tiles) = (vec![vec![]; TILES as usize], [0; TILES as usize]);
    for (index, words) in (0..).zip(words.chunks_exact(WORDS)) {
        let (m, n) = (index / i64::from(TILES), index % i64::from(TILES));
        let (first_query, first_key) = (m * tile - shifts[0], n * tile - shifts[1]);
        let told = Told::from_words(&words[2 * ENTRIES..]);
        let entries = (0..tile).flat_map(|r| (0..tile).map(move |c| (r, c)));
        let (mut all_seen, mut some_seen) = (true, false);
        for (r, c) in entries.filter(|(r, _)| (0..band.queries).contains(&(first_query + r))) {
            let (i, j) = (first_query + r, first_key + c);
            let expected = (0..band.keys).contains(&j) && sees(i, j);
            all_seen &= expected;
            some_seen |= expected;
            for (rows, at) in [("queries", r * tile + c), ("keys", ENTRIES as i64 + c * tile + r)] {
                let got = f32::from_bits(words[at as usize]) == 1.0;
                assert_eq!(got, expected, "{case:?}, rows are {rows}, query {i}, key {j}");
            }
        }
        let is_among = |tile: i64, [begin, end]: [u32; 2]| (begin..end).contains(&(tile as u32));
        // Whoever has a query that sees nothing, or a key that nobody sees, may look at more than is needed; or rows
        // before the tensor.
        let within = |first: i64, end: i64| first.max(0)..(first + tile).min(end);
        let blind = first_query < 0 || within(first_query, band.queries).any(|i| band.keys_of(i).is_empty());
        let unseen = first_key < 0 || within(first_key, band.keys).any(|j| band.queries_of(j).is_empty());
        let is_empty = [(first_query, band.queries), (first_key, band.keys)]
            .map(|(first, end)| within(first, end).is_empty());
        let needed = [some_seen || blind || is_empty[0], some_seen || unseen || is_empty[1]];
        for (tile, tiles, needed) in [(n, told.key_tiles, needed[0]), (m, told.query_tiles, needed[1])] {
            let looks = is_among(tile, tiles);
            assert!(looks || !some_seen, "{case:?}, tiles {m}, {n}");
            assert!(!looks || needed, "{case:?}, tiles {m}, {n}");
        }
        if !is_empty[1] && is_among(m, told.query_tiles) {
            looking[m as usize].push(n);
            assert!(n <= i64::from(told.last_key_tile), "{case:?}, tiles {m}, {n}");
        }
        last_key_tiles[m as usize] = i64::from(told.last_key_tile).min(i64::from(TILES) - 1);
        if !all_seen {
            assert!(told.is_edge && told.hides_some, "{case:?}, tiles {m}, {n}");
        } else if first_query >= 0 && first_query + tile <= band.queries {
            // What is seen whole is not looked at entry by entry; rows that are none may say otherwise.
            assert!(!told.hides_some, "{case:?}, tiles {m}, {n}");
            whole += 1;
        }
    }
    // Blocks of keys that add to a tile of queries one behind the other: neighbours, up to the one that all are told.
    for (m, (looking, last)) in looking.iter().zip(last_key_tiles).enumerate() {
        let neighbours = looking.first().map_or(vec![], |first| (*first..=last).collect());
        assert_eq!(*looking, neighbours, "{case:?}, queries of tile {m}");
    }
    whole
}

#[test]
fn kernels_see_what_core_says_whichever_sides_a_band_has() {
    for (has_left, has_right) in [(false, false), (false, true), (true, false), (true, true)] {
        let kernel = kernel(has_left, has_right);
        let mut whole = 0;
        for (queries, keys) in [(40, 40), (16, 48), (37, 19), (1, 33), (30, 0)] {
            for (diagonal, left, right) in
                [(keys - queries, 0, 0), (0, 3, 17), (-9, 20, 0), (11, 1, 2), (0, 30, 30)]
            {
                let band = Visibility {
                    left: has_left.then_some(left),
                    right: has_right.then_some(right),
                    diagonal,
                    queries,
                    keys,
                };
                for shifts in [[0, 0], [5, 0], [3, 7]] {
                    whole += check(&kernel, &Case { band, shifts });
                }
            }
        }
        assert!(whole > 0, "some tile is seen whole: {has_left}, {has_right}");
    }
}
