//! The parameters of a factory: its shape, its Decker-Wattenhofer layers and its deadlines.

use super::codec::{list, tlv_stream, Stream, Value};
use super::limits::{MAX_LAYERS, MAX_LEVELS};
use crate::tlv::{write_bigsize, Reader};
use crate::Error;

/// One Decker-Wattenhofer layer. State `i` of it has a relative delay of `base + step * (states - 1 - i)`
/// blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DwLayer {
    /// Number of states.
    pub states: u16,
    /// Blocks between the delays of two successive states.
    pub step: u16,
    /// Blocks of delay of the last state.
    pub base: u16,
}

tlv_stream! {
    /// The parameters of a factory that do not depend on who takes part.
    PlanParams {
        /// Clients of one leaf.
        0 => clients_per_leaf: u16,
        /// Children of a node, one number for each interior level, root first. At most
        /// [`MAX_LEVELS`](super::MAX_LEVELS).
        2 => arity: Vec<u16>,
        /// Layers of each level, root first, leaf last: one list more than `arity` has numbers. An empty
        /// list is a static level. At most [`MAX_LEVELS`](super::MAX_LEVELS) lists of
        /// [`MAX_LAYERS`](super::MAX_LAYERS).
        4 => layers: Vec<Vec<DwLayer>>,
        /// Blocks of the active period.
        6 => active: u32,
        /// Blocks of the dying period.
        8 => dying: u32,
        /// Blocks of margin before the expiry height.
        10 => margin: u32,
        /// Blocks allowed for one transaction to confirm.
        12 => confirm_blocks: u16,
        /// Blocks a reorganisation may take back.
        14 => reorg_margin: u16,
        /// `to_self_delay` of the channels, in blocks.
        16 => to_self_delay: u16,
        /// Confirmations of the funding transaction before the channels are used.
        18 => min_depth: u16,
    }
}

/// Nested as one TLV stream, so that a later version can add parameters.
impl Value for PlanParams {
    fn put(&self, out: &mut Vec<u8>) {
        self.write(out);
    }
    fn get(record: Reader<'_>) -> Result<Self, Error> {
        let params = Self::read(record.all(usize::MAX)?)?;
        let (layers, arities) = (params.layers.len(), params.arity.len());
        if arities.checked_add(1) != Some(layers) {
            return Err(Error::LevelMismatch { layers, arities });
        }
        Ok(params)
    }
}

/// At most [`MAX_LEVELS`].
impl Value for Vec<u16> {
    fn put(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|number| number.put(out));
    }
    fn get(record: Reader<'_>) -> Result<Self, Error> {
        Ok(record.arrays(MAX_LEVELS)?.into_iter().map(u16::from_be_bytes).collect())
    }
}

/// A count of levels; for each a count of layers; for each `states`, `step`, `base`.
impl Value for Vec<Vec<DwLayer>> {
    fn put(&self, out: &mut Vec<u8>) {
        write_bigsize(out, self.len() as u64);
        for layers in self {
            write_bigsize(out, layers.len() as u64);
            for layer in layers {
                [layer.states, layer.step, layer.base].iter().for_each(|number| number.put(out));
            }
        }
    }
    fn get(mut record: Reader<'_>) -> Result<Self, Error> {
        let levels = list(&mut record, MAX_LEVELS, |record| {
            list(record, MAX_LAYERS, |record| {
                Ok(DwLayer { states: record.u16()?, step: record.u16()?, base: record.u16()? })
            })
        })?;
        record.finish()?;
        Ok(levels)
    }
}
