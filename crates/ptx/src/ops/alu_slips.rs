//! What a row of the table could be confused with.
use super::alu::{self, Alu, Apply};
use crate::mutation::Mistake;

/// Another row, with some of the operands, by their numbers.
type Instead = (&'static str, &'static Alu, &'static [usize]);

const LESS_FIRST: &str = "less its first operand";
const LESS_SECOND: &str = "less its second operand";
const LESS_THIRD: &str = "less its third operand";
const TURNED: &str = "turned round";
const FORGOTTEN: &str = "forgotten";

/// What could stand there by mistake; nothing for moves, conversions and bits.
fn of_row(row: &Alu) -> &'static [Instead] {
    use alu::*;
    match row.text {
        "add.rn.f32" => {
            &[(LESS_FIRST, MOV32, &[1]), (LESS_SECOND, MOV32, &[0]), ("as a difference", SUB_F, &[0, 1])]
        }
        "sub.rn.f32" => &[(LESS_SECOND, MOV32, &[0]), (TURNED, SUB_F, &[1, 0]), ("as a sum", ADD_F, &[0, 1])],
        "mul.rn.f32" => &[(LESS_FIRST, MOV32, &[1]), (LESS_SECOND, MOV32, &[0])],
        "fma.rn.f32" => &[
            (LESS_FIRST, ADD_F, &[1, 2]),
            (LESS_SECOND, ADD_F, &[0, 2]),
            (LESS_THIRD, MUL_F, &[0, 1]),
            ("less its product", MOV32, &[2]),
        ],
        "max.f32" => {
            &[(LESS_FIRST, MOV32, &[1]), (LESS_SECOND, MOV32, &[0]), ("as the lesser", MIN_F, &[0, 1])]
        }
        "min.f32" => {
            &[(LESS_FIRST, MOV32, &[1]), (LESS_SECOND, MOV32, &[0]), ("as the greater", MAX_F, &[0, 1])]
        }
        "neg.f32" | "abs.f32" | "ex2.approx.ftz.f32" | "lg2.approx.ftz.f32" | "rcp.approx.ftz.f32" => {
            &[(FORGOTTEN, MOV32, &[0])]
        }
        "cvt.rn.f32.s32" => &[("without its sign", U32_F32, &[0])],
        "add.u32" => {
            &[(LESS_FIRST, MOV32, &[1]), (LESS_SECOND, MOV32, &[0]), ("as a difference", SUB, &[0, 1])]
        }
        "sub.u32" => &[(LESS_SECOND, MOV32, &[0]), (TURNED, SUB, &[1, 0]), ("as a sum", ADD, &[0, 1])],
        "mul.lo.u32" => &[(LESS_FIRST, MOV32, &[1]), (LESS_SECOND, MOV32, &[0])],
        "mad.lo.u32" => {
            &[(LESS_FIRST, ADD, &[1, 2]), (LESS_SECOND, ADD, &[0, 2]), (LESS_THIRD, MUL, &[0, 1])]
        }
        "div.u32" | "shr.u32" | "shl.b32" => &[(LESS_SECOND, MOV32, &[0])],
        "mul.wide.u32" => &[(LESS_FIRST, WIDEN, &[1]), (LESS_SECOND, WIDEN, &[0])],
        "mad.wide.u32" => &[(LESS_THIRD, MUL_WIDE, &[0, 1])],
        "add.u64" => &[(LESS_FIRST, MOV64, &[1]), (LESS_SECOND, MOV64, &[0])],
        "mul.lo.u64" => &[(LESS_FIRST, MOV64, &[1]), (LESS_SECOND, MOV64, &[0])],
        "mad.lo.u64" => {
            &[(LESS_FIRST, ADD64, &[1, 2]), (LESS_SECOND, ADD64, &[0, 2]), (LESS_THIRD, MUL64, &[0, 1])]
        }
        "setp.lt.f32" => &[(TURNED, LT_F, &[1, 0])],
        "setp.eq.f32" => &[("never", LT_F, &[0, 0])],
        "setp.lt.u32" => &[(TURNED, LT, &[1, 0]), ("or equal", LE, &[0, 1])],
        "setp.eq.u32" => &[("not", NE, &[0, 1])],
        "and.pred" => &[("as or", OR_P, &[0, 1])],
        "or.pred" => &[("as and", AND_P, &[0, 1])],
        "not.pred" => &[(FORGOTTEN, AND_P, &[0, 0])],
        "selp.b32" => &[("always", MOV32, &[0]), ("never", MOV32, &[1]), (TURNED, SELECT, &[1, 0, 2])],
        _ => &[],
    }
}

impl Apply {
    /// What a mistaken author would have computed.
    pub(crate) fn slips_of_row(&self) -> Vec<Mistake> {
        let of = |&(what, op, operands): &Instead| {
            let mut src = self.src;
            for (to, from) in operands.iter().enumerate() {
                src[to] = self.src[*from];
            }
            Mistake::new(what, Apply { op, dst: self.dst, src })
        };
        of_row(self.op).iter().map(of).collect()
    }
}
