//! Numbers as they are read: single ones, or two neighbours at once.
use crate::config::{Numbers, OverlayKind};
use signflash_ptx::{B32, F32, GlobalAddr, Half, Pred, Thread, U32, Val};

/// Two neighbours, as they were read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Two<'k> {
    /// Each in a register of its own.
    Apart([Val<'k, B32>; 2]),
    /// In the halves of a register.
    Halves(Val<'k, B32>),
    /// In its two low bytes.
    Bytes(Val<'k, B32>),
}

/// Two neighbours, at a multiple of their size.
#[track_caller]
pub(super) fn load_two<'k>(t: Thread<'k>, numbers: Numbers, from: GlobalAddr<'k>) -> Two<'k> {
    match numbers {
        Numbers::F32 => Two::Apart(t.load_constant::<B32, 2>(from)),
        Numbers::F16 | Numbers::Bf16 => {
            let [halves] = t.load_constant::<B32, 1>(from);
            Two::Halves(halves)
        }
        Numbers::Bytes => Two::Bytes(t.load_constant_half(from)),
    }
}

/// One.
#[track_caller]
pub(crate) fn load_one<'k>(t: Thread<'k>, numbers: Numbers, from: GlobalAddr<'k>) -> Val<'k, B32> {
    match numbers {
        Numbers::F32 => {
            let [word] = t.load_constant::<B32, 1>(from);
            word
        }
        Numbers::F16 | Numbers::Bf16 => t.load_constant_half(from),
        Numbers::Bytes => t.load_constant_byte(from),
    }
}

impl<'k> Two<'k> {
    /// The registers.
    pub(super) fn words(self) -> Vec<Val<'k, B32>> {
        match self {
            Two::Apart(words) => words.to_vec(),
            Two::Halves(word) | Two::Bytes(word) => vec![word],
        }
    }

    /// The same in other registers.
    pub(super) fn with_words(self, words: &[Val<'k, B32>]) -> Self {
        match self {
            Two::Apart(_) => Two::Apart([words[0], words[1]]),
            Two::Halves(_) => Two::Halves(words[0]),
            Two::Bytes(_) => Two::Bytes(words[0]),
        }
    }

    /// One of them as a number.
    #[track_caller]
    pub(super) fn number(self, kind: OverlayKind, x: usize) -> Val<'k, F32> {
        let half = match kind.numbers {
            Numbers::Bf16 => Half::Bf16,
            _ => Half::F16,
        };
        match (self, kind.numbers, x) {
            (Two::Apart(words), Numbers::F32, _) => words[x].cast(),
            (Two::Apart(words), ..) => words[x].half_to_f32(half),
            (Two::Halves(word), Numbers::Bf16, 1) => (word & 0xFFFF_0000u32).cast(),
            (Two::Halves(word), _, 1) => (word >> 16u32).half_to_f32(half),
            (Two::Halves(word), ..) => word.half_to_f32(half),
            (Two::Bytes(_), ..) => unreachable!("a mask has no numbers"),
        }
    }

    /// Whether one of them is not 0.
    #[track_caller]
    pub(super) fn is_set(self, x: usize) -> Val<'k, Pred> {
        let bits = match self {
            Two::Apart(words) => words[x],
            Two::Halves(word) => word & [0xFFFFu32, 0xFFFF_0000][x],
            Two::Bytes(word) => word & [0xFFu32, 0xFF00][x],
        };
        bits.cast::<U32>().ne(0)
    }
}
