//! A block that owns queries and walks over keys: what the forward and the pass over queries have in common.
use crate::config::{BandKind, Common, PortableForm};
use crate::packed::PackedVals;
use crate::parts::args::{HeadRows, ProblemVals, TensorVals};
use crate::parts::copy::TileRows;
use crate::parts::hiding::first_column;
use crate::parts::overlays::{ByQueries, KeysRead, OverlayVals};
use crate::parts::scores::{HeadScores, Place, RowsAre, ScoreStage, ScoreVals};
use crate::parts::visibility::{KeyTiles, SeenRange, Sight};
use crate::parts::width::{Width, Widths};
use crate::parts::work::Work;
use signflash_ptx::{CopyRing, Cta, SmemAddr, U32, Val};

/// Where a block's queries are, and how its threads bring tiles.
pub(super) struct QueryBlock<'a, 'k> {
    pub(super) cta: Cta<'k>,
    pub(super) common: &'a Common,
    pub(super) form: &'a PortableForm,
    pub(super) problem: ProblemVals<'k>,
    pub(super) widths: Widths<'k>,
    scores: ScoreVals<'k>,
    overlays: Option<OverlayVals<'k>>,
    pub(super) work: Work<'k>,
    /// The keys that some query may see, if not all.
    range: Option<SeenRange<'k>>,
}

/// Keys and values of a head, tile by tile.
pub(super) struct KeyValues<'a, 'k> {
    block: &'a QueryBlock<'a, 'k>,
    /// `form.step` rows of k, then as many of v.
    ring: &'a CopyRing<'k>,
    heads: [HeadRows<'k>; 2],
    /// Behind the last tile.
    end: Val<'k, U32>,
}

impl<'a, 'k> QueryBlock<'a, 'k> {
    /// This block of the grid. The last tiles of a head come first where they have the most to do.
    pub(super) fn locate(
        cta: Cta<'k>,
        common: &'a Common,
        form: &'a PortableForm,
        (problem, widths): (ProblemVals<'k>, Widths<'k>),
        packed: Option<&PackedVals<'k>>,
        (scores, overlays): (ScoreVals<'k>, Option<OverlayVals<'k>>),
    ) -> Self {
        let reversed = common.scores.band != BandKind::Full;
        let work = match packed {
            None => {
                let tiles = problem.query_tiles(form.rows());
                Work::locate(cta, &problem, tiles, problem.num_heads, reversed)
            }
            Some(packed) => {
                let work = Work::listed(cta, &problem, packed, cta.index(), problem.num_heads);
                if reversed { work.counted_from_the_last(work.sequence.seqlen_q, form.rows()) } else { work }
            }
        };
        let range = overlays.as_ref().and_then(|overlays| overlays.range(cta.threads(), work.sequence));
        QueryBlock { cta, common, form, problem, widths, scores, overlays, work, range }
    }

    /// Its first query; before the tensor's first, if a shard starts there.
    pub(super) fn first_row(&self) -> Val<'k, U32> {
        self.work.block * self.form.rows() - self.problem.row_shift
    }

    pub(super) fn sight(&self) -> Sight<'k> {
        Sight::new(self.cta.threads(), &self.problem, self.work.sequence, self.scores.band).within(self.range)
    }

    /// What is added to the scores of a lane's two of 16 queries, if anything is.
    pub(super) fn overlays_of(&self, first: impl FnOnce() -> Val<'k, U32>) -> Option<ByQueries<'k>> {
        let overlays = self.overlays.as_ref()?;
        let Work { sequence, head, .. } = self.work;
        let own = first() + (self.cta.threads().lane() >> 2);
        Some(ByQueries::new(self.cta.warps(), overlays, (sequence, head), [own, own + 8]))
    }

    /// The first key of a tile; before the tensor's first, if a shard starts there.
    pub(super) fn first_key(&self, tile: Val<'k, U32>) -> Val<'k, U32> {
        tile * self.form.step - self.problem.column_shift
    }

    /// What is added to the scores of 16 queries and a tile of keys, if anything is.
    pub(super) fn read(&self, overlays: Option<&ByQueries<'k>>, tile: Val<'k, U32>) -> Option<KeysRead<'k>> {
        overlays.map(|overlays| overlays.read(self.first_key(tile), self.form.step))
    }

    /// Where a thread's part of the scores of 16 queries and a tile of keys lies.
    #[track_caller]
    pub(super) fn place(&self, first_row: Val<'k, U32>, tile: Val<'k, U32>) -> Place<'k> {
        let t = self.cta.threads();
        let (row, column) = (first_row + (t.lane() >> 2), self.first_key(tile) + first_column(t));
        Place { rows_are: RowsAre::Queries, row, column }
    }

    /// What becomes of the scores of the block's head.
    pub(super) fn head_scores(&self) -> HeadScores<'k> {
        let Work { sequence, head, .. } = self.work;
        self.stage().of_head(self.cta.threads(), sequence, || head)
    }

    /// What becomes of scores.
    pub(super) fn stage(&self) -> ScoreStage<'k> {
        ScoreStage::new(self.cta.threads(), &self.problem, self.scores, self.common.scores)
    }

    /// Queries of a tensor, from `first` on.
    pub(super) fn queries_of(
        &self,
        tensor: &TensorVals<'k>,
        width: Width<'k>,
        first: Val<'k, U32>,
    ) -> TileRows<'k> {
        let Work { sequence, head, .. } = self.work;
        width.tile(tensor.head(sequence.queries(), head), first, sequence.seqlen_q)
    }

    /// Starts to bring the block's rows of these tensors.
    pub(super) fn load_queries<const N: usize>(
        &self,
        tensors: [(SmemAddr<'k>, &TensorVals<'k>, Width<'k>); N],
        first: Val<'k, U32>,
    ) {
        let t = self.cta.threads();
        for (to, tensor, width) in tensors {
            let rows = self.queries_of(tensor, width, first);
            width.copy(t, t.index(), self.form.threads()).load(to, rows, self.form.rows());
        }
    }

    /// The keys and values that the block's queries see.
    pub(super) fn key_values<'s>(
        &'s self,
        ring: &'s CopyRing<'k>,
        [k, v]: [&TensorVals<'k>; 2],
        tiles: &KeyTiles<'k>,
    ) -> KeyValues<'s, 'k> {
        let Work { sequence, head, .. } = self.work;
        let head_k = head / self.problem.group_size;
        KeyValues {
            block: self,
            ring,
            heads: [k, v].map(|tensor| tensor.head(sequence.keys(), head_k)),
            end: tiles.end,
        }
    }
}

impl<'k> KeyValues<'_, 'k> {
    /// Starts to bring a tile, if there is one.
    pub(super) fn fill(&self, tile: Val<'k, U32>) {
        let KeyValues { block, ring, heads: [k, v], end } = self;
        let (step, slot) = (block.form.step, ring.next_fill());
        ring.fill(block.cta, || {
            block.cta.when(tile.lt(*end), |_| {
                let first = tile * step - block.problem.column_shift;
                let (seqlen, Widths { q: of_k, v: of_v }) = (block.work.sequence.seqlen_k, block.widths);
                let t = block.cta.threads();
                let [copy_k, copy_v] = block.widths.copies(t, t.index(), block.form.threads());
                copy_k.load(slot, of_k.tile(*k, first, seqlen), step);
                copy_v.load(slot.at(of_k.layout().bytes(step)), of_v.tile(*v, first, seqlen), step);
            });
        });
    }
}
