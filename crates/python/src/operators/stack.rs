//! A kernel's arguments and results, as PyTorch hands them over: each is one number.

use super::stable::{Outcome, Tensor, Torch, Value};

/// Arguments, which are ours to free; all must be read, in their order.
pub(crate) struct Arguments<'a> {
    values: std::slice::Iter<'a, Value>,
    torch: &'static Torch,
}

impl<'a> Arguments<'a> {
    /// # Safety
    /// The values are those of an operator whose arguments are then read as what its schema says they are.
    pub(crate) unsafe fn new(values: &'a [Value], torch: &'static Torch) -> Self {
        Self { values: values.iter(), torch }
    }

    fn next(&mut self) -> Value {
        *self.values.next().expect("a schema of as many arguments")
    }

    pub(crate) fn tensor(&mut self) -> Tensor {
        // SAFETY: a handle that is ours, as whoever made this promised.
        unsafe { Tensor::of_value(self.next(), self.torch) }
    }

    pub(crate) fn optional_tensor(&mut self) -> Option<Tensor> {
        let value = self.optional()?;
        // SAFETY: as above.
        Some(unsafe { Tensor::of_value(value, self.torch) })
    }

    /// A `Tensor?`, or a `Tensor` that may be none.
    pub(crate) fn defined(&mut self) -> Outcome<Option<Tensor>> {
        let tensor = self.tensor();
        Ok(if tensor.is_defined()? { Some(tensor) } else { None })
    }

    pub(crate) fn number(&mut self) -> f64 {
        f64::from_bits(self.next())
    }

    pub(crate) fn optional_number(&mut self) -> Option<f64> {
        self.optional().map(f64::from_bits)
    }

    pub(crate) fn integer(&mut self) -> i64 {
        self.next() as i64
    }

    /// A bool, of which PyTorch writes one byte.
    pub(crate) fn flag(&mut self) -> bool {
        self.next().to_ne_bytes()[0] != 0
    }

    /// So many of them in a list.
    pub(crate) fn flags<const N: usize>(&mut self) -> Outcome<[bool; N]> {
        let list = std::ptr::with_exposed_provenance_mut(self.next() as usize);
        let mut flags = [false; N];
        let mut outcome = Ok(());
        for (place, flag) in flags.iter_mut().enumerate() {
            let mut value = 0;
            // SAFETY: a list, which is ours, as whoever made this promised; it writes a value.
            let status = unsafe { (self.torch.functions.list_item)(list, place, &raw mut value) };
            outcome = outcome.and(self.torch.check(status));
            *flag = value.to_ne_bytes()[0] != 0;
        }
        // SAFETY: nobody uses it any more.
        outcome = outcome.and(self.torch.check(unsafe { (self.torch.functions.delete_list)(list) }));
        outcome.map(|()| flags)
    }

    /// What an optional argument has, whose memory is freed.
    fn optional(&mut self) -> Option<Value> {
        let place: *mut Value = std::ptr::with_exposed_provenance_mut(self.next() as usize);
        if place.is_null() {
            return None;
        }
        // SAFETY: a value that PyTorch has allocated for us, as whoever made this promised.
        let value = unsafe { *place };
        let functions = &self.torch.functions;
        match (functions.delete_value, functions.delete_memory) {
            // SAFETY: nobody uses it any more.
            (Some(delete), _) => drop(unsafe { delete(place) }),
            // SAFETY: nobody uses it any more; PyTorch has made it by C++'s operator new.
            (None, Some(delete)) => unsafe { delete(place.cast()) },
            (None, None) => {} // `Torch::find` wants one of them
        }
        Some(value)
    }
}

/// A result.
pub(crate) enum Found {
    Tensor(Tensor),
    /// A tensor that is none.
    Nothing,
    Integer(i64),
}

impl Found {
    pub(crate) fn into_value(self, torch: &'static Torch) -> Outcome<Value> {
        match self {
            Self::Tensor(tensor) => Ok(tensor.into_value()),
            Self::Nothing => Ok(torch.nothing()?.into_value()),
            Self::Integer(number) => Ok(number as Value),
        }
    }
}
