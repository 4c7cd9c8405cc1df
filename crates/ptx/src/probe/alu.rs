//! A probe for each row of the table.
use super::{Plan, Probe, Tolerance, host};
use crate::build::{Builder, GlobalAddr, Val};
use crate::ops::alu::{Alu, Kind, TABLE};
use crate::types::{Pred, Src, U32, U64};

const THREADS: u32 = 128;
const GRID: u32 = 2;
/// Each thread has three operands of two words each.
const IN: usize = 6;
const OUT: usize = 2;

pub(super) fn probes() -> Vec<Probe> {
    TABLE.iter().map(|row| probe(row)).collect()
}

fn probe(row: &'static Alu) -> Probe {
    let lanes = (THREADS * GRID) as usize;
    let tolerance = Tolerance {
        ulps: row.ulps,
        // Near 1 the logarithm's error is absolute (PTX ISA, lg2.approx); where ex2 and rcp flush, one side may round
        // up to the least normal number.
        absolute: match row.text {
            "lg2.approx.ftz.f32" => 2.4e-7,
            _ if row.ulps > 0 => f32::MIN_POSITIVE,
            _ => 0.0,
        },
        // PTX leaves open which NaN these give; an H200 gives the canonical one.
        any_nan: matches!(row.text, "neg.f32" | "abs.f32"),
    };
    let name = format!("{}{}", row.text, row.suffix);
    Plan::new(&name, THREADS).grid(GRID).sizes(IN * lanes, OUT * lanes).tolerance(tolerance).build(
        move |input| input.chunks_exact(IN).flat_map(|words| expected(row, words)).collect(),
        |cta, io| {
            let t = cta.threads();
            let thread = cta.index() * THREADS + t.index();
            let from = io.input.plus((thread * (4 * IN as u32)).widen());
            let src = [0, 1, 2].map(|i| match row.inputs.get(i) {
                Some(kind) => operand(t, from.at(8 * i as i64), *kind),
                None => Src::Imm(0),
            });
            let to = io.output.plus((thread * (4 * OUT as u32)).widen());
            t.store(to, result(thread.builder, row, src));
        },
    )
}

fn operand<'k>(t: crate::Thread<'k>, from: GlobalAddr<'k>, kind: Kind) -> Src {
    let [low, high] = t.load::<U32, 2>(from);
    match kind {
        Kind::U64 => high.widen().mul_add(1u64 << 32, low.widen()).src,
        Kind::Pred => (low & 1).ne(0).src,
        _ => low.src,
    }
}

fn result<'k>(builder: &'k Builder, row: &'static Alu, src: [Src; 3]) -> [Val<'k, U32>; 2] {
    let zero = Val::new(builder, Src::Imm(0));
    match row.output {
        Kind::U64 => {
            let wide = builder.apply::<U64>(row, src);
            [wide.low(), (wide >> 32).low()]
        }
        Kind::Pred => [builder.apply::<Pred>(row, src).select(1u32, 0u32), zero],
        _ => [builder.apply::<U32>(row, src), zero],
    }
}

fn expected(row: &Alu, words: &[u32]) -> [u32; OUT] {
    let value = |i: usize| {
        let wide = u64::from(words[2 * i + 1]) << 32 | u64::from(words[2 * i]);
        match row.inputs.get(i) {
            Some(Kind::U64) => wide,
            Some(Kind::Pred) => wide & 1,
            Some(_) => wide & 0xFFFF_FFFF,
            None => 0,
        }
    };
    let out = host::evaluate(row, [value(0), value(1), value(2)]);
    [out as u32, (out >> 32) as u32]
}
