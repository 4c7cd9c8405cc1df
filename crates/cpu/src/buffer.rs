//! Scratch memory: cache-line aligned, zeroed, one allocation a worker.

/// 64 bytes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

/// Words of scratch. It grows with tile sizes and never with a sequence length.
pub(crate) struct Buffer(Vec<Line>);

impl Buffer {
    /// At least `words` zeroed words.
    pub(crate) fn new(words: usize) -> Self {
        Self(vec![Line([0; 16]); words.div_ceil(16)])
    }

    /// Its first word.
    pub(crate) fn words(&mut self) -> *mut u32 {
        self.0.as_mut_ptr().cast()
    }

    /// Its first word, as f32.
    pub(crate) fn floats(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }
}
