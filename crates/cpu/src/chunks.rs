//! The chunks of keys of all key heads, in the order in which they are begun.

/// One chunk of the keys of a key head of a sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Chunk {
    /// Number of the sequence.
    pub(crate) sequence: usize,
    /// Its key head.
    pub(crate) head_k: usize,
    /// Its number among the head's.
    pub(crate) index: usize,
    /// Its number among all, where those of a head follow each other.
    pub(crate) number: usize,
}

/// Chunk by chunk over sets of at most `set` heads, so that a chunk, which waits for the one before it, seldom finds
/// that one not begun long ago. `counts` says how many chunks a head of each sequence has.
pub(crate) fn in_order(counts: &[usize], num_heads_k: usize, set: usize) -> Vec<Chunk> {
    let (heads, mut all) = (counts.len() * num_heads_k, 0);
    let mut first_of_sequence = Vec::with_capacity(counts.len());
    for count in counts {
        first_of_sequence.push(all);
        all += count * num_heads_k;
    }
    let mut chunks = Vec::with_capacity(all);
    for first in (0..heads).step_by(set.max(1)) {
        let set = first..heads.min(first.saturating_add(set));
        let count = |head: usize| counts[head / num_heads_k];
        for index in 0..set.clone().map(count).max().unwrap_or(0) {
            for head in set.clone().filter(|&head| index < count(head)) {
                let (sequence, head_k) = (head / num_heads_k, head % num_heads_k);
                let number = first_of_sequence[sequence] + head_k * count(head) + index;
                chunks.push(Chunk { sequence, head_k, index, number });
            }
        }
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(counts: &[usize], num_heads_k: usize, set: usize) -> Vec<[usize; 4]> {
        let place = |x: Chunk| [x.sequence, x.head_k, x.index, x.number];
        in_order(counts, num_heads_k, set).into_iter().map(place).collect()
    }

    #[test]
    fn chunks_of_a_set_of_heads_take_turns() {
        let of_two = [[0, 0, 0, 0], [0, 1, 0, 2], [0, 0, 1, 1], [0, 1, 1, 3]];
        assert_eq!(places(&[2], 2, 2), of_two);
        let unequal = [[0, 0, 0, 0], [1, 0, 0, 3], [0, 0, 1, 1], [0, 0, 2, 2], [2, 0, 0, 4], [2, 0, 1, 5]];
        assert_eq!(places(&[3, 1, 2], 1, 2), unequal);
        assert!(places(&[], 3, 2).is_empty());
    }

    #[test]
    fn each_chunk_comes_once_and_after_the_one_before_it() {
        for set in [1, 2, 5, usize::MAX] {
            let chunks = in_order(&[3, 1, 1, 7, 2], 3, set);
            let mut begun = vec![false; chunks.len()];
            for chunk in chunks {
                assert!(chunk.index == 0 || begun[chunk.number - 1], "{chunk:?}");
                assert!(!std::mem::replace(&mut begun[chunk.number], true), "{chunk:?}");
            }
            assert!(begun.into_iter().all(|begun| begun));
        }
    }
}
