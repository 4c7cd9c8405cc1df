//! Sums of a tile of dbias: from accumulators to the tensor.
use super::walk::Own;
use super::{Block, WarpTools};
use crate::config::Numbers;
use crate::parts::args::ScoreTensorVals;
use crate::parts::hiding::first_column;
use signflash_ptx::{Acc, F32, GlobalAddr, Half, Thread, U32, U64, Val};

impl<'k> Block<'_, 'k> {
    /// Scales, rounds and writes a warp's sums; one row of all the block's, if all queries have the same bias.
    pub(super) fn write(&self, tools: &WarpTools<'k>, sums: &[Acc<'k>], pairs: bool) {
        match self.bias().1 {
            true => self.write_row(sums, self.results().matrix()),
            false => self.write_rows(tools, sums, pairs),
        }
    }

    /// The bias's format, and whether all queries have the same.
    fn bias(&self) -> (Numbers, bool) {
        let bias = self.common.scores.overlays.bias.expect("a bias");
        (bias.numbers, bias.per_key)
    }

    fn write_rows(&self, tools: &WarpTools<'k>, sums: &[Acc<'k>], pairs: bool) {
        let first_row = self.own.query_tile * self.form.rows() - self.problem.row_shift + tools.row;
        for (i, sum) in (0..).zip(sums) {
            self.results().write(first_row + 16 * i, sum, pairs);
        }
    }

    fn results(&self) -> Results<'_, 'k> {
        let (numbers, _) = self.bias();
        let (t, own, dbias) = (self.cta.threads(), &self.own, &self.args.dbias);
        Results { t, own, dbias, numbers, factor: self.factor() }
    }

    /// Adds up all rows of the block: of a lane, of the lanes, of the warps.
    fn write_row(&self, sums: &[Acc<'k>], matrix: Val<'k, U64>) {
        let (cta, form) = (self.cta, self.form);
        let (warp, t) = (cta.warps(), cta.threads());
        let places = cta.smem("sums", 4 * form.warps * form.step, 16);
        let own = places.plus(warp.index() * (4 * form.step) + (t.lane() & 3) * 8);
        for group in 0..sums[0].groups() {
            let of_warp = [0, 1].map(|x| {
                let rows = sums.iter().flat_map(|sum| [0, 1].map(|h| sum.at(group, 2 * h + x).get()));
                let of_lane = rows.reduce(|a, b| a + b).expect("a warp has rows");
                [4, 8, 16].into_iter().fold(of_lane, |sum, bit| sum + warp.shuffle_xor(sum, bit))
            });
            t.when(t.lane().lt(4), |t| t.store(own.at(32 * group as u32), of_warp));
        }
        cta.sync();
        let first = t.index().var();
        // As many columns as threads at once.
        t.while_(
            || first.get().lt(form.step),
            |t| {
                let (column, key) = (first.get(), self.own.first_key + first.get());
                t.when(key.lt(self.args.dbias.columns), |t| {
                    let of_warp = |warp: u32| {
                        let [sum] = t.load::<F32, 1>(places.plus(column * 4).at(4 * form.step * warp));
                        sum
                    };
                    let sum = (0..form.warps).map(of_warp).reduce(|a, b| a + b).expect("a block has warps");
                    self.results().store(t, matrix, key, sum * self.factor());
                });
                first.set(column + form.threads());
            },
        );
    }
}

/// Where a tile's sums go.
pub(crate) struct Results<'a, 'k> {
    pub(crate) t: Thread<'k>,
    pub(crate) own: &'a Own<'k>,
    pub(crate) dbias: &'a ScoreTensorVals<'k>,
    /// The bias's format.
    pub(crate) numbers: Numbers,
    /// What sums are multiplied by.
    pub(crate) factor: Val<'k, F32>,
}

impl<'k> Results<'_, 'k> {
    fn matrix(&self) -> Val<'k, U64> {
        let Results { own, dbias, .. } = self;
        own.head.widen().mul_add(dbias.head, own.batch.widen().mul_add(dbias.batch, dbias.ptr))
    }

    /// Scales, rounds and writes the sums of 16 rows.
    pub(crate) fn write(&self, first_row: Val<'k, U32>, sum: &Acc<'k>, pairs: bool) {
        let Results { t, dbias, own, factor, .. } = self;
        let (matrix, first_key) = (self.matrix(), own.first_key + first_column(*t));
        for h in [0, 1] {
            let row = first_row + (t.lane() >> 2) + 8 * h as u32;
            let start = row.widen().mul_add(dbias.row, matrix);
            t.when(row.lt(dbias.rows), |t| {
                for group in 0..sum.groups() {
                    let key = first_key + 8 * group as u32;
                    let numbers = [0, 1].map(|x| sum.at(group, 2 * h + x).get() * *factor);
                    if pairs {
                        t.when(key.lt(dbias.columns), |t| self.store_two(t, start, key, numbers));
                    } else {
                        for (x, number) in (0..).zip(numbers) {
                            t.when((key + x).lt(dbias.columns), |t| self.store(t, start, key + x, number));
                        }
                    }
                }
            });
        }
    }

    fn half(&self) -> Option<Half> {
        match self.numbers {
            Numbers::F16 => Some(Half::F16),
            Numbers::Bf16 => Some(Half::Bf16),
            Numbers::F32 | Numbers::Bytes => None,
        }
    }

    fn store(&self, t: Thread<'k>, row: Val<'k, U64>, key: Val<'k, U32>, number: Val<'k, F32>) {
        let to = GlobalAddr::new(key.widen().mul_add(self.dbias.column, row));
        match self.half() {
            Some(half) => t.store_half(to, number.pack(number, half, false)),
            None => t.store(to, [number]),
        }
    }

    /// Two neighbours at once.
    fn store_two(&self, t: Thread<'k>, row: Val<'k, U64>, key: Val<'k, U32>, numbers: [Val<'k, F32>; 2]) {
        let to = GlobalAddr::new(row + (key * self.numbers.bytes()).widen());
        match self.half() {
            Some(half) => t.store(to, [numbers[0].pack(numbers[1], half, false)]),
            None => t.store(to, numbers),
        }
    }
}
