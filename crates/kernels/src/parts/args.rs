//! Kernel arguments, declared once: a host struct that makes [`Arg`]s and a device struct that reads them.
use super::sequence::RowsOf;
pub(crate) use crate::tensor::{DeviceTensor, ScoreTensor};
use signflash_ptx::{Arg, Cta, F32, GlobalAddr, S32, Tensor, TensorMap, U32, U64, Val};

/// How a field of this type is passed and read.
pub(crate) trait Passed {
    type Device<'k>;
    fn push(self, args: &mut Vec<Arg>);
    fn declare<'k>(cta: Cta<'k>, names: &[&'static str]) -> Self::Device<'k>;
}

impl Passed for u32 {
    type Device<'k> = Val<'k, U32>;
    fn push(self, args: &mut Vec<Arg>) {
        args.push(Arg::U32(self));
    }
    fn declare<'k>(cta: Cta<'k>, names: &[&'static str]) -> Self::Device<'k> {
        cta.param_u32(names[0])
    }
}

impl Passed for i32 {
    type Device<'k> = Val<'k, S32>;
    fn push(self, args: &mut Vec<Arg>) {
        args.push(Arg::U32(self as u32));
    }
    fn declare<'k>(cta: Cta<'k>, names: &[&'static str]) -> Self::Device<'k> {
        cta.param_u32(names[0]).cast()
    }
}

impl Passed for u64 {
    type Device<'k> = Val<'k, U64>;
    fn push(self, args: &mut Vec<Arg>) {
        args.push(Arg::U64(self));
    }
    fn declare<'k>(cta: Cta<'k>, names: &[&'static str]) -> Self::Device<'k> {
        cta.param_u64(names[0])
    }
}

impl Passed for f32 {
    type Device<'k> = Val<'k, F32>;
    fn push(self, args: &mut Vec<Arg>) {
        args.push(Arg::F32(self));
    }
    fn declare<'k>(cta: Cta<'k>, names: &[&'static str]) -> Self::Device<'k> {
        cta.param_f32(names[0])
    }
}

impl Passed for TensorMap {
    type Device<'k> = Tensor<'k>;
    fn push(self, args: &mut Vec<Arg>) {
        args.push(Arg::Tensor(self));
    }
    fn declare<'k>(cta: Cta<'k>, names: &[&'static str]) -> Self::Device<'k> {
        cta.param_tensor(names[0])
    }
}

/// A [`DeviceTensor`] on the device; strides in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TensorVals<'k> {
    pub(crate) ptr: Val<'k, U64>,
    pub(crate) batch: Val<'k, U64>,
    pub(crate) row: Val<'k, U64>,
    pub(crate) head: Val<'k, U64>,
}

impl Passed for DeviceTensor {
    type Device<'k> = TensorVals<'k>;
    fn push(self, args: &mut Vec<Arg>) {
        args.push(Arg::U64(self.ptr));
        args.extend(
            [self.batch_stride, self.row_stride, self.head_stride].map(|stride| Arg::U64(2 * stride)),
        );
    }
    fn declare<'k>(cta: Cta<'k>, names: &[&'static str]) -> Self::Device<'k> {
        TensorVals {
            ptr: cta.param_u64(names[1]),
            batch: cta.param_u64(names[2]),
            row: cta.param_u64(names[3]),
            head: cta.param_u64(names[4]),
        }
    }
}

/// A [`ScoreTensor`] on the device; strides in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScoreTensorVals<'k> {
    pub(crate) ptr: Val<'k, U64>,
    pub(crate) batch: Val<'k, U64>,
    pub(crate) head: Val<'k, U64>,
    pub(crate) row: Val<'k, U64>,
    pub(crate) column: Val<'k, U64>,
    pub(crate) rows: Val<'k, U32>,
    pub(crate) columns: Val<'k, U32>,
}

impl Passed for ScoreTensor {
    type Device<'k> = ScoreTensorVals<'k>;
    fn push(self, args: &mut Vec<Arg>) {
        args.push(Arg::U64(self.ptr));
        args.extend(self.strides_bytes.map(Arg::U64));
        args.extend([self.rows, self.columns].map(Arg::U32));
    }
    fn declare<'k>(cta: Cta<'k>, names: &[&'static str]) -> Self::Device<'k> {
        ScoreTensorVals {
            ptr: cta.param_u64(names[1]),
            batch: cta.param_u64(names[2]),
            head: cta.param_u64(names[4]),
            row: cta.param_u64(names[3]),
            column: cta.param_u64(names[5]),
            rows: cta.param_u32(names[6]),
            columns: cta.param_u32(names[7]),
        }
    }
}

impl<'k> TensorVals<'k> {
    /// A sequence's rows of one head.
    #[track_caller]
    pub(crate) fn head(&self, rows: RowsOf<'k>, head: Val<'k, U32>) -> HeadRows<'k> {
        let start = head.widen().mul_add(self.head, rows.start(self));
        HeadRows { start, stride: self.row }
    }
}

/// The rows of one head of a tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadRows<'k> {
    start: Val<'k, U64>,
    /// Bytes from one row to the next.
    pub(crate) stride: Val<'k, U64>,
}

impl<'k> HeadRows<'k> {
    /// One row; before the first they have negative numbers.
    pub(crate) fn row(&self, row: Val<'k, U32>) -> GlobalAddr<'k> {
        GlobalAddr::new(row.cast::<S32>().widen().mul_add(self.stride, self.start))
    }
}

/// Makes the two structs. The order of the fields is the order of the kernel's parameters.
macro_rules! kernel_args {
    ($(#[$doc:meta])* $host:ident / $device:ident { $($(#[$field_doc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub(crate) struct $host {
            $($(#[$field_doc])* pub(crate) $field: $ty,)*
        }

        impl $host {
            pub(crate) fn push(self, args: &mut Vec<signflash_ptx::Arg>) {
                $($crate::parts::args::Passed::push(self.$field, args);)*
            }
        }

        #[derive(Clone, Copy, Debug)]
        #[allow(dead_code)]
        pub(crate) struct $device<'k> {
            $(pub(crate) $field: <$ty as $crate::parts::args::Passed>::Device<'k>,)*
        }

        impl<'k> $device<'k> {
            pub(crate) fn declare(cta: signflash_ptx::Cta<'k>) -> Self {
                $(let $field = <$ty as $crate::parts::args::Passed>::declare(cta, &[
                    stringify!($field),
                    concat!(stringify!($field), "_ptr"),
                    concat!(stringify!($field), "_batch_bytes"),
                    concat!(stringify!($field), "_row_bytes"),
                    concat!(stringify!($field), "_head_bytes"),
                    concat!(stringify!($field), "_column_bytes"),
                    concat!(stringify!($field), "_rows"),
                    concat!(stringify!($field), "_columns"),
                ]);)*
                $device { $($field),* }
            }
        }
    };
}
pub(crate) use kernel_args;

kernel_args! {
    /// What every kernel knows of the problem.
    ProblemArgs / ProblemVals {
        /// Queries.
        seqlen_q: u32,
        /// Keys.
        seqlen_k: u32,
        /// Query heads.
        num_heads: u32,
        /// Key heads.
        num_heads_k: u32,
        /// Query heads a key head.
        group_size: u32,
        /// Real columns of a head.
        head_dim: u32,
        /// softmax_scale with its sign.
        scale: f32,
        /// |softmax_scale| * log2(e).
        scale_log2: f32,
        /// The first query's row in the whole, modulo 16: tiles start so many rows before it.
        row_shift: u32,
        /// The first key's column in the whole, modulo 32: tiles start so many columns before it.
        column_shift: u32,
        /// Rows of a head in the statistics (`rows/statistics.rs`), which start `row_shift` rows before the first
        /// query.
        stat_rows: u32,
    }
}

kernel_args! {
    /// Where in its random stream the dropout mask is.
    DropoutArgs / DropoutVals {
        /// Key of the generator.
        seed: u64,
        /// Counter of the generator.
        offset: u64,
        /// Address of a seed and an offset (u64 each) to be read instead, or 0. So a captured graph drops others
        /// at each replay.
        seed_and_offset_ptr: u64,
        /// Index of (batch 0, head 0) among the (batch, head) pairs of the whole.
        first_stream: u64,
        /// Query heads of the whole.
        num_heads_total: u64,
        /// The first query's row in the whole, divided by 16.
        first_row16: u32,
        /// The first key's column in the whole, divided by 32.
        first_column32: u32,
        /// A byte up to this is kept.
        threshold: u32,
        /// Factor of what is kept.
        keep_scale: f32,
    }
}
