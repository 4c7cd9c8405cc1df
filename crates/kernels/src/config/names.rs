//! How the parts of a configuration are written in a kernel's name.
use super::depends::{
    Access, BandKind, Common, DeltaRows, DqSums, HopperCommon, Layout, Operands, Product, RowsCommon, Scores,
    Stored,
};
use std::fmt;

impl fmt::Display for Operands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}_d{}", self.half.name(), self.stored, self.layout, self.head_dim)?;
        self.head_dim_v.map_or(Ok(()), |head_dim_v| write!(f, "v{head_dim_v}"))
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stored::Rounded => "",
            Stored::Wide => "_wide",
            Stored::Added => "_added",
        })
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::Batch => "",
            Layout::Packed => "_packed",
        })
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Access::Whole => "",
            Access::Pieces => "_ragged",
            Access::Elements => "_narrow",
        })
    }
}

impl fmt::Display for Scores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scores { band, dropout, kind, overlays, sinks } = *self;
        f.write_str(match band {
            BandKind::Full => "",
            BandKind::Right => "_causal",
            BandKind::Both => "_window",
        })?;
        let flags = [
            (dropout, "_drop"),
            (kind.product == Product::Negated, "_neg"),
            (kind.product == Product::Capped, "_softcap"),
            (kind.alibi, "_alibi"),
            (sinks, "_sinks"),
        ];
        flags.into_iter().filter(|(on, _)| *on).try_for_each(|(_, text)| f.write_str(text))?;
        write!(f, "{overlays}")
    }
}

impl fmt::Display for RowsCommon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.operands, self.access)
    }
}

impl fmt::Display for DeltaRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeltaRows::Wide { lanes } => write!(f, "_lanes{lanes}"),
            DeltaRows::Narrow { columns } => write!(f, "_narrow{columns}"),
        }
    }
}

impl fmt::Display for Common {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.operands, self.access, self.scores)
    }
}

impl fmt::Display for HopperCommon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.operands, self.scores)
    }
}

impl fmt::Display for DqSums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DqSums::None => "",
            DqSums::Narrow => "_dq",
            DqSums::Wide => "_dq4",
        })
    }
}
