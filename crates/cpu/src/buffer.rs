//! Scratch memory: cache-line aligned, allocated when it is first used.

/// 64 bytes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

/// Words of scratch. It grows with tile sizes and never with a sequence length.
pub(crate) struct Buffer {
    lines: Vec<Line>,
    count: usize,
}

impl Buffer {
    /// At least `words` words, zeroed.
    pub(crate) fn new(words: usize) -> Self {
        Self { lines: Vec::new(), count: words.div_ceil(16) }
    }

    /// Its first word.
    #[inline(always)]
    pub(crate) fn words(&mut self) -> *mut u32 {
        if self.lines.len() != self.count {
            self.allocate();
        }
        self.lines.as_mut_ptr().cast()
    }

    /// Its first word, as f32.
    #[inline(always)]
    pub(crate) fn floats(&mut self) -> *mut f32 {
        self.words().cast()
    }

    #[cold]
    fn allocate(&mut self) {
        self.lines = vec![Line([0; 16]); self.count];
    }
}
