//! Elements between files and memory. Files are little endian.

use signflash_core::{Dtype, Element, bf16, f16};
use std::io::{self, Read, Write};

#[cfg(target_endian = "big")]
compile_error!("tensor files are little endian and are read without swapping bytes");

/// The elements of a tensor.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Data {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    /// Bytes and booleans.
    U8(Vec<u8>),
    /// Where packed sequences begin: numpy's and PyTorch's own integers.
    I32(Vec<i32>),
    I64(Vec<i64>),
}

/// The element types of [`Data`], without elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A type that attention is computed in.
    Float(Dtype),
    /// Bytes and booleans.
    U8,
    /// Whole numbers of 32 bits.
    I32,
    /// Whole numbers of 64 bits.
    I64,
}

impl Kind {
    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::Float(dtype) => dtype.size_bytes(),
            Self::U8 => 1,
            Self::I32 => 4,
            Self::I64 => 8,
        }
    }
}

/// A type that attention is computed in, and its place in [`Data`].
pub trait FileElement: Element {
    /// Wraps elements of this type.
    fn wrap(elements: Vec<Self>) -> Data;
    /// The elements, if they are of this type.
    fn take(data: Data) -> Result<Vec<Self>, Data>;
    /// The elements, if they are of this type.
    fn borrow(data: &Data) -> Option<&[Self]>;
}

macro_rules! file_element {
    ($($float:ty: $variant:ident),*) => {$(
        impl FileElement for $float {
            fn wrap(elements: Vec<Self>) -> Data {
                Data::$variant(elements)
            }
            fn take(data: Data) -> Result<Vec<Self>, Data> {
                match data {
                    Data::$variant(elements) => Ok(elements),
                    other => Err(other),
                }
            }
            fn borrow(data: &Data) -> Option<&[Self]> {
                match data {
                    Data::$variant(elements) => Some(elements),
                    _ => None,
                }
            }
        }
    )*};
}

file_element!(f32: F32, f16: F16, bf16: Bf16);

impl Data {
    /// Which type the elements are.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::F32(_) => Kind::Float(Dtype::F32),
            Self::F16(_) => Kind::Float(Dtype::F16),
            Self::Bf16(_) => Kind::Float(Dtype::Bf16),
            Self::U8(_) => Kind::U8,
            Self::I32(_) => Kind::I32,
            Self::I64(_) => Kind::I64,
        }
    }

    /// The type's name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::F32(_) => "f32",
            Self::F16(_) => "f16",
            Self::Bf16(_) => "bf16",
            Self::U8(_) => "u8",
            Self::I32(_) => "i32",
            Self::I64(_) => "i64",
        }
    }

    /// How many elements.
    pub const fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::F16(x) => x.len(),
            Self::Bf16(x) => x.len(),
            Self::U8(x) => x.len(),
            Self::I32(x) => x.len(),
            Self::I64(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as f64, one by one; whole numbers as their value, beyond 2^53 rounded.
    pub fn to_f64(&self) -> Vec<f64> {
        match self {
            Self::F32(x) => x.iter().map(|&x| f64::from(x)).collect(),
            Self::F16(x) => x.iter().map(|&x| x.to_f64()).collect(),
            Self::Bf16(x) => x.iter().map(|&x| x.to_f64()).collect(),
            Self::U8(x) => x.iter().map(|&x| f64::from(x)).collect(),
            Self::I32(x) => x.iter().map(|&x| f64::from(x)).collect(),
            Self::I64(x) => x.iter().map(|&x| x as f64).collect(),
        }
    }
}

/// Reads exactly `count` elements. Memory grows with what has arrived, so a source that ends early costs little.
///
/// # Errors
/// Those of the source; `UnexpectedEof` if it ends early; `OutOfMemory`.
pub fn read_elements(source: &mut impl Read, kind: Kind, count: usize) -> io::Result<Data> {
    Ok(match kind {
        Kind::Float(Dtype::F32) => Data::F32(read_vec(source, count)?),
        Kind::Float(Dtype::F16) => Data::F16(read_vec(source, count)?),
        Kind::Float(Dtype::Bf16) => Data::Bf16(read_vec(source, count)?),
        Kind::Float(_) => return Err(io::ErrorKind::Unsupported.into()),
        Kind::U8 => Data::U8(read_vec(source, count)?),
        Kind::I32 => Data::I32(read_vec(source, count)?),
        Kind::I64 => Data::I64(read_vec(source, count)?),
    })
}

fn read_vec<T: bytemuck::Pod + Default>(source: &mut impl Read, count: usize) -> io::Result<Vec<T>> {
    const CHUNK: usize = 1 << 20;
    let mut elements: Vec<T> = Vec::new();
    while elements.len() < count {
        let start = elements.len();
        let end = count.min(start + CHUNK);
        // Doubling, but never beyond what is wanted.
        if elements.capacity() < end {
            let room = end.max(2 * elements.capacity()).min(count);
            elements.try_reserve_exact(room - start).map_err(|_| io::ErrorKind::OutOfMemory)?;
        }
        elements.resize(end, T::default());
        source.read_exact(bytemuck::cast_slice_mut(&mut elements[start..]))?;
    }
    Ok(elements)
}

/// Writes all elements.
///
/// # Errors
/// Those of the sink.
pub fn write_elements(sink: &mut impl Write, data: &Data) -> io::Result<()> {
    sink.write_all(match data {
        Data::F32(x) => bytemuck::cast_slice(x),
        Data::F16(x) => bytemuck::cast_slice(x),
        Data::Bf16(x) => bytemuck::cast_slice(x),
        Data::U8(x) => x,
        Data::I32(x) => bytemuck::cast_slice(x),
        Data::I64(x) => bytemuck::cast_slice(x),
    })
}
