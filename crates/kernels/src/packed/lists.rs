//! The lists that the kernels of a call ask for, on the host: where they are, and the launch that makes them.
use super::list::{LISTS, ListArgs, blocks};
use super::{PackedArgs, RECORD_BYTES};
use crate::call::{CallError, check_packed};
use crate::geometry::packed_sequences;
use crate::workspace::list_bytes;
use signflash_core::Problem;
use signflash_ptx::Arg;

/// What is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Rows of a tile.
    pub(crate) rows: u32,
    /// Whether these are keys, or else queries.
    pub(crate) keys: bool,
}

/// Lists behind each other in a workspace.
#[derive(Clone, Debug)]
pub(crate) struct Lists {
    cu_seqlens: [u64; 2],
    /// Rows of q, and of k.
    totals: [u32; 2],
    /// Sequences, and one of what is left over.
    sequences: u64,
    /// Where the first list goes, and how far apart they are.
    first: u64,
    bytes: u64,
    asked: Vec<Listed>,
}

impl Lists {
    /// Of packed sequences, so many bytes behind the start of a workspace; none if sequences are not packed.
    pub(crate) fn new(
        problem: &Problem,
        cu_seqlens: Option<[u64; 2]>,
        (workspace, offset): (u64, u64),
    ) -> Result<Option<Self>, CallError> {
        check_packed(problem, cu_seqlens, workspace)?;
        let shape = problem.shape();
        Ok(packed_sequences(problem).zip(cu_seqlens).map(|(sequences, cu_seqlens)| Lists {
            cu_seqlens,
            totals: [shape.seqlen_q, shape.seqlen_k].map(|rows| rows as u32),
            sequences,
            first: workspace + offset,
            bytes: list_bytes(problem),
            asked: vec![],
        }))
    }

    /// A list, for a kernel of which `tiles_each` tiles are one of the list.
    pub(crate) fn of(&mut self, listed: Listed, tiles_each: u32) -> PackedArgs {
        let number = self.asked.iter().position(|asked| *asked == listed).unwrap_or_else(|| {
            self.asked.push(listed);
            self.asked.len() - 1
        });
        PackedArgs { list: self.address(number), sequences: self.sequences as u32, tiles_each }
    }

    fn address(&self, number: usize) -> u64 {
        debug_assert!(self.bytes.is_multiple_of(RECORD_BYTES.into()));
        self.first + number as u64 * self.bytes
    }

    /// The blocks that make those which were asked for, and their arguments.
    pub(crate) fn launch(&self) -> (u64, Vec<Arg>) {
        // What nobody asked for has no address.
        let list = |i: usize| match self.asked.get(i) {
            Some(Listed { rows, keys }) => (self.address(i), *rows, u32::from(*keys)),
            None => (0, 1, 0),
        };
        let [(list0, rows0, keys0), (list1, rows1, keys1), (list2, rows2, keys2)] = [0, 1, 2].map(list);
        let ([cu_seqlens_q, cu_seqlens_k], [total_q, total_k]) = (self.cu_seqlens, self.totals);
        let sequences = self.sequences as u32 - 1;
        let args = ListArgs {
            cu_seqlens_q,
            cu_seqlens_k,
            total_q,
            total_k,
            sequences,
            list0,
            rows0,
            keys0,
            list1,
            rows1,
            keys1,
            list2,
            rows2,
            keys2,
        };
        assert!(self.asked.len() <= LISTS, "{:?}", self.asked);
        let mut all = vec![];
        args.push(&mut all);
        (blocks(self.asked.len(), self.sequences), all)
    }
}
