//! Boxes of tensors, moved between global and shared memory by Hopper's copy engine.
use crate::instruction::{Flow, Instruction, Printer, braced};
use crate::interp::mbarrier::BulkCopy;
use crate::interp::{Fault, Lanes, Machine, Rule};
use crate::kernel::Arg;
use crate::ops::memory::Address;
use crate::target::Needs;
use crate::tensor_map::TensorMap;
use crate::types::{Reg, S32, Src, U64};

/// The address of a parameter that is a tensor.
#[derive(Debug)]
pub(crate) struct TensorAddress {
    pub(crate) dst: Reg,
    pub(crate) index: usize,
    pub(crate) name: &'static str,
}

impl Instruction for TensorAddress {
    fn needs(&self) -> Needs {
        Needs::ptx(7, 7)
    }

    fn print(&self, ptx: &mut Printer) {
        ptx.line(format_args!("mov.b64 {0}, {1}", self.dst, self.name));
        ptx.line(format_args!("cvta.param.u64 {0}, {0}", self.dst));
    }

    /// In place of an address: the parameter's number.
    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        machine.write64(self.dst, &[self.index as u64; 32]);
        Ok(Flow::Next)
    }
}

/// Where in which tensor.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) tensor: Src,
    pub(crate) coordinates: [Src; 4],
    /// Whether there is a dimension 4, as [`TensorMap::packed`] says.
    pub(crate) wraps: bool,
}

impl Place {
    fn text(&self) -> String {
        let mut coordinates = self.coordinates.map(|c| c.text::<S32>()).to_vec();
        if self.wraps {
            coordinates.push(TensorMap::PACKED_END.to_string());
        }
        format!("[{}, {}]", self.tensor.text::<U64>(), braced(coordinates))
    }

    fn rank(&self) -> usize {
        if self.wraps { 5 } else { 4 }
    }

    fn read(&self, machine: &Machine<'_>) -> Result<(TensorMap, [Lanes<u32>; 4]), Fault> {
        let index = machine.uniform(&machine.read64(self.tensor)?, "the tensor")? as usize;
        let mut coordinates = [[0; 32]; 4];
        for (to, from) in coordinates.iter_mut().zip(self.coordinates) {
            *to = machine.read32(from)?;
        }
        match machine.launch.args.get(index) {
            Some(Arg::Tensor(map)) if map.is_valid() && map.wraps == self.wraps => Ok((*map, coordinates)),
            other => {
                let text = format!("argument {index} is no tensor that can be copied: {other:?}");
                Err(Fault::new(Rule::Launch, text))
            }
        }
    }
}

/// The pieces of a box: for each row the address of its first column in global memory, if it is there, how many bytes
/// of it are, and where its 16-byte chunks are in the box.
fn rows(map: &TensorMap, at: [i32; 4]) -> impl Iterator<Item = (Option<(u64, usize)>, [usize; 8])> {
    let map = *map;
    let columns = (map.dims[0] as i64 - i64::from(at[0])).clamp(0, i64::from(TensorMap::BOX_COLUMNS));
    (0..map.box_rows).map(move |row| {
        let start = map.row([at[1].wrapping_add(row as i32), at[2], at[3]]);
        let there = start.filter(|_| at[0] >= 0 && columns > 0);
        let chunk = |i| row as usize * 128 + (i ^ (row as usize % 8)) * 16;
        (there.map(|start| (start + 2 * at[0] as u64, 2 * columns as usize)), std::array::from_fn(chunk))
    })
}

/// Pieces of 16 bytes, the last perhaps in pieces of 2.
fn pieces(bytes: usize) -> impl Iterator<Item = (usize, usize)> {
    let whole = (0..bytes / 16).map(|i| (16 * i, 16));
    whole.chain((bytes / 16 * 16..bytes).step_by(2).map(|at| (at, 2)))
}

fn check_base(at: u32, what: &str) -> Result<(), Fault> {
    match at.is_multiple_of(1024) {
        true => Ok(()),
        false => Err(Fault::new(Rule::Misaligned, format!("{what} a box at shared address {at}"))),
    }
}

/// `cp.async.bulk.tensor` from global to shared memory; an mbarrier counts the bytes of the whole box.
#[derive(Debug)]
pub(crate) struct TensorLoad {
    pub(crate) to: Address,
    pub(crate) from: Place,
    pub(crate) barrier: Address,
}

impl Instruction for TensorLoad {
    fn needs(&self) -> Needs {
        Needs::sm90(8, 0)
    }

    fn print(&self, ptx: &mut Printer) {
        let (to, from, barrier, rank) =
            (self.to.text(), self.from.text(), self.barrier.text(), self.from.rank());
        ptx.line(format_args!(
            "cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes {to}, {from}, {barrier}"
        ));
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        let (to, barriers) = (self.to.read_shared(machine)?, self.barrier.read_shared(machine)?);
        let (map, coordinates) = self.from.read(machine)?;
        for lane in machine.warp.lanes() {
            check_base(to[lane], "copy of")?;
            // On an H100, loads from a tensor whose base is not in memory end in an illegal access.
            machine.global.has(map.base, "access to a tensor's base")?;
            let mut image = vec![0; map.box_bytes() as usize];
            for (there, chunks) in rows(&map, coordinates.map(|c| c[lane] as i32)) {
                let Some((start, bytes)) = there else { continue };
                for (at, len) in pieces(bytes) {
                    let to = chunks[at / 16] + at % 16;
                    machine.load_global(start + at as u64, &mut image[to..to + len])?;
                }
            }
            let flight = machine.block.shared.depart(true, lane, machine.at);
            machine.block.shared.hold_for_write(machine.warp, lane, flight, to[lane], image, true)?;
            let offset = machine.block.shared.locate(barriers[lane], 8, "mbarrier")? as u32;
            let barrier = (offset, i64::from(map.box_bytes()));
            machine.mbarrier_expects(lane, barriers[lane], BulkCopy { at: machine.at, flight, barrier })?;
        }
        Ok(Flow::Next)
    }
}

/// `cp.async.bulk.tensor` from shared to global memory, one of a bulk group.
#[derive(Debug)]
pub(crate) struct TensorStore {
    pub(crate) to: Place,
    pub(crate) from: Address,
}

impl Instruction for TensorStore {
    fn needs(&self) -> Needs {
        Needs::sm90(8, 0)
    }

    fn print(&self, ptx: &mut Printer) {
        let (to, from, rank) = (self.to.text(), self.from.text(), self.to.rank());
        ptx.line(format_args!(
            "cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group {to}, {from}"
        ));
    }

    fn step(&self, machine: &mut Machine<'_>) -> Result<Flow, Fault> {
        let from = self.from.read_shared(machine)?;
        let (map, coordinates) = self.to.read(machine)?;
        for lane in machine.warp.lanes() {
            check_base(from[lane], "copy from")?;
            if coordinates.iter().any(|c| (c[lane] as i32) < 0) {
                // Loads take it; a store ended in an illegal instruction on an H200 (driver 580.159).
                let at = coordinates.map(|c| c[lane] as i32);
                return Err(Fault::new(Rule::OutOfBounds, format!("a box is stored from {at:?} on")));
            }
            if !map.dims[0].is_multiple_of(8) {
                // An H200 writes whole pieces of 16 bytes: what lies behind each row, too.
                let text = format!("rows of {} columns are stored in pieces of 8", map.dims[0]);
                return Err(Fault::new(Rule::OutOfBounds, text));
            }
            let base = from[lane];
            let flight = machine.block.shared.depart(false, lane, machine.at);
            let len = map.box_bytes() as usize;
            let image = machine.block.shared.hold_for_read(machine.warp, lane, flight, from[lane], len)?;
            for (there, chunks) in rows(&map, coordinates.map(|c| c[lane] as i32)) {
                let Some((start, bytes)) = there else { continue };
                for (at, len) in pieces(bytes) {
                    let from = chunks[at / 16] + at % 16;
                    machine.block.shared.check_written(base + from as u32, len)?;
                    machine.store_global(start + at as u64, &image[from..from + len])?;
                }
            }
            machine.warp.bulk_uncommitted.push(flight);
        }
        Ok(Flow::Next)
    }
}
