//! The header of `.npy`: a magic number, a version, a length and a Python dictionary of three entries.
//!
//! The dictionary is read by a scanner that knows these three entries and nothing else of Python: no recursion, so
//! nothing that a hostile header could nest.

use super::{FileError, printable};
use std::io::{self, Read, Write};

const FORMAT: &str = "npy";
const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// numpy's own default limit (`max_header_size`).
const MAX_HEADER: u64 = 10_000;
/// numpy's own limit.
const MAX_DIMS: usize = 64;

/// What a `.npy` header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// numpy's type string, such as `<f4`.
    pub descr: String,
    /// First dimension fastest.
    pub fortran_order: bool,
    /// The sizes.
    pub shape: Vec<usize>,
}

impl Header {
    /// Elements, if they can be counted.
    pub fn count(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size))
    }
}

/// Reads a header; returns it and the number of bytes that it took.
///
/// # Errors
/// [`FileError::Header`] or [`FileError::HeaderTooLong`], and what the source says.
pub fn read_header(source: &mut impl Read) -> Result<(Header, u64), FileError> {
    let mut start = [0; 8];
    read_part(source, &mut start)?;
    if &start[..6] != MAGIC {
        return Err(bad("it does not start with \\x93NUMPY"));
    }
    let length_bytes = match start[6] {
        1 => 2,
        2 | 3 => 4,
        other => return Err(bad(&format!("version {other} is unknown, expected 1, 2 or 3"))),
    };
    let mut length = [0; 4];
    read_part(source, &mut length[..length_bytes])?;
    let length = u64::from(u32::from_le_bytes(length));
    if length > MAX_HEADER {
        return Err(FileError::HeaderTooLong { got: length, max: MAX_HEADER, format: FORMAT });
    }
    let mut text = vec![0; length as usize];
    read_part(source, &mut text)?;
    let text = std::str::from_utf8(&text).map_err(|_| bad("it is not text"))?;
    Ok((parse(text)?, 8 + length_bytes as u64 + length))
}

fn read_part(source: &mut impl Read, part: &mut [u8]) -> Result<(), FileError> {
    source.read_exact(part).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => bad("it ends early"),
        _ => error.into(),
    })
}

fn bad(why: &str) -> FileError {
    FileError::Header { why: why.to_string(), format: FORMAT }
}

fn parse(text: &str) -> Result<Header, FileError> {
    let mut scan = Scanner { rest: text };
    let (mut descr, mut fortran_order, mut shape) = (None, None, None);
    scan.expect('{')?;
    while !scan.accept('}') {
        let key = scan.string()?;
        scan.expect(':')?;
        match key {
            "descr" => descr = Some(scan.string()?.to_string()),
            "fortran_order" => fortran_order = Some(scan.boolean()?),
            "shape" => shape = Some(scan.tuple()?),
            other => return Err(bad(&format!("unknown key {:?}", printable(other)))),
        }
        if !scan.accept(',') {
            scan.expect('}')?;
            break;
        }
    }
    match (descr, fortran_order, shape, scan.rest.trim().is_empty()) {
        (Some(descr), Some(fortran_order), Some(shape), true) => Ok(Header { descr, fortran_order, shape }),
        (.., false) => Err(bad("text follows its dictionary")),
        _ => Err(bad("descr, fortran_order or shape is missing")),
    }
}

struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    fn accept(&mut self, wanted: char) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, wanted: char) -> Result<(), FileError> {
        if self.accept(wanted) { Ok(()) } else { Err(self.unexpected(&format!("{wanted:?}"))) }
    }

    fn unexpected(&self, wanted: &str) -> FileError {
        bad(&format!(
            "expected {wanted}, got {:?}",
            printable(&self.rest.chars().take(12).collect::<String>())
        ))
    }

    fn string(&mut self) -> Result<&'a str, FileError> {
        for quote in ['\'', '"'] {
            if self.accept(quote) {
                let (string, rest) =
                    self.rest.split_once(quote).ok_or_else(|| bad("a string does not end"))?;
                self.rest = rest;
                return Ok(string);
            }
        }
        // A list here describes a structured array.
        Err(self.unexpected("a quoted string"))
    }

    fn boolean(&mut self) -> Result<bool, FileError> {
        self.rest = self.rest.trim_start();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(self.unexpected("True or False"))
    }

    fn tuple(&mut self) -> Result<Vec<usize>, FileError> {
        let mut sizes = Vec::new();
        self.expect('(')?;
        while !self.accept(')') {
            if sizes.len() == MAX_DIMS {
                return Err(bad(&format!("shape has more than {MAX_DIMS} dimensions")));
            }
            sizes.push(self.integer()?);
            if !self.accept(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(sizes)
    }

    fn integer(&mut self) -> Result<usize, FileError> {
        self.rest = self.rest.trim_start();
        let digits = self.rest.len() - self.rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, rest) = self.rest.split_at(digits);
        let value = number.parse().map_err(|_| self.unexpected("a size that can be addressed"))?;
        self.rest = rest.strip_prefix('L').unwrap_or(rest); // Python 2 wrote 5L
        Ok(value)
    }
}

/// Writes a version 1 header, padded so that the data start at a multiple of 64 bytes.
///
/// # Errors
/// Those of the sink.
pub fn write_header(sink: &mut impl Write, descr: &str, shape: &[usize]) -> io::Result<()> {
    let sizes: String = shape.iter().map(|size| format!("{size}, ")).collect();
    // numpy writes (5,) and (2, 3); both read either.
    let sizes = if shape.len() == 1 { sizes.trim_end() } else { sizes.trim_end_matches(", ") };
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sizes}), }}");
    let unpadded = MAGIC.len() + 4 + text.len() + 1;
    text.extend(std::iter::repeat_n(' ', unpadded.next_multiple_of(64) - unpadded));
    text.push('\n');
    let length = u16::try_from(text.len()).map_err(io::Error::other)?;
    sink.write_all(MAGIC)?;
    sink.write_all(&[1, 0])?;
    sink.write_all(&length.to_le_bytes())?;
    sink.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_round_trip() {
        for shape in [vec![], vec![7], vec![2, 3], vec![1, 2, 3, 4], vec![0, 5]] {
            let mut bytes = Vec::new();
            write_header(&mut bytes, "<f4", &shape).unwrap();
            assert_eq!(bytes.len() % 64, 0);
            let (header, used) = read_header(&mut bytes.as_slice()).unwrap();
            assert_eq!((used as usize, header.shape), (bytes.len(), shape));
        }
    }

    #[test]
    fn what_numpy_writes_is_read() {
        let header = parse("{'descr': '<f2', 'fortran_order': False, 'shape': (2, 3, 4), }   \n").unwrap();
        assert_eq!(header, Header { descr: "<f2".into(), fortran_order: false, shape: vec![2, 3, 4] });
        assert_eq!(parse("{'descr':'|u1','fortran_order':True,'shape':(5L,)}").unwrap().shape, [5]);
    }

    #[test]
    fn anything_else_is_an_error() {
        for text in [
            "",
            "{",
            "{'descr': '<f4'}",
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': ()}",
            "{'descr': '<f4', 'fortran_order': 1, 'shape': ()}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': ()} trailing",
            "((((((((((((((((((((((((((((((((",
        ] {
            assert!(matches!(parse(text), Err(FileError::Header { .. })), "{text}");
        }
    }
}
