//! Where packed sequences begin, as tensors of a file.

use crate::errors::Error;
use crate::files::{Archive, Data, Tensor, listing};
use signflash_core::Problem;

/// The tensors, of queries and of keys: sequence b begins at the b-th number and ends at the next.
pub const CU_SEQLENS: [&str; 2] = ["cu_seqlens_q", "cu_seqlens_k"];

/// What they are.
const MEANING: &str = "(sequences + 1)";

/// The numbers that a file holds, of queries and of keys; `None` if its sequences are not packed.
///
/// # Errors
/// [`Error::MissingTensor`] if one of the two is there alone; [`Error::TensorDtype`], [`Error::TensorShape`];
/// [`Error::TensorNumber`] for what is below 0 or beyond 32 bits. What else sequences must be, the problem judges.
pub fn cu_seqlens(archive: &Archive) -> Result<Option<[Vec<u32>; 2]>, Error> {
    let [q, k] = CU_SEQLENS.map(|name| archive.tensors.get(name));
    match (q, k) {
        (None, None) => Ok(None),
        (Some(q), Some(k)) => {
            let (q, k) = (numbers(CU_SEQLENS[0], q)?, numbers(CU_SEQLENS[1], k)?);
            if q.len() != k.len() {
                return Err(Error::TensorShape {
                    tensor: CU_SEQLENS[1],
                    got: vec![k.len()],
                    expected: format!("[{}] (that of cu_seqlens_q)", q.len()),
                    meaning: MEANING,
                });
            }
            Ok(Some([q, k]))
        }
        (q, _) => Err(Error::MissingTensor {
            tensor: CU_SEQLENS[usize::from(q.is_some())],
            present: listing(&archive.present),
            remedy: "packed sequences need both: if queries and keys have the same lengths, store it twice",
        }),
    }
}

/// One of them.
fn numbers(name: &'static str, tensor: &Tensor) -> Result<Vec<u32>, Error> {
    let numbers: Vec<i64> = match &tensor.data {
        Data::I32(numbers) => numbers.iter().copied().map(i64::from).collect(),
        Data::I64(numbers) => numbers.clone(),
        other => {
            return Err(Error::TensorDtype {
                tensor: name,
                got: other.name(),
                expected: "i32 or i64".into(),
            });
        }
    };
    if tensor.shape.len() != 1 {
        let got = tensor.shape.clone();
        return Err(Error::TensorShape {
            tensor: name,
            got,
            expected: "one dimension".into(),
            meaning: MEANING,
        });
    }
    let number = |(index, got): (usize, &i64)| {
        let expected = "from 0 to the number of rows";
        u32::try_from(*got).map_err(|_| Error::TensorNumber { tensor: name, index, expected, got: *got })
    };
    numbers.iter().enumerate().map(number).collect()
}

/// Those of a problem, as tensors of a file, if it is packed.
pub fn tensors(problem: &Problem) -> impl Iterator<Item = (String, Tensor)> {
    let tensor = |(name, numbers): (&str, &[u32])| {
        // No sequence of a problem is as long as 2^31.
        let data = Data::I32(numbers.iter().map(|&number| number as i32).collect());
        (name.to_string(), Tensor { shape: vec![numbers.len()], data })
    };
    problem.cu_seqlens().into_iter().flat_map(move |both| CU_SEQLENS.into_iter().zip(both).map(tensor))
}
