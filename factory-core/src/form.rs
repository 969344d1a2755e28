//! Whether the transactions of a stored path are those of its shape: how many there are of each level, how long each one
//! waits, and what the leaf and its distributions pay. That they hang together and are signed is checked beside it.

use bitcoin::ScriptBuf;

use crate::faults::switch;
use crate::plan::LeafSpec;
use crate::record::SignedPath;
use crate::transaction::{SignedTx, TxKind};
use crate::Error;

/// Kind and delay of every transaction of the path in order, and the number of those above the leaf level.
fn expected(path: &SignedPath) -> Result<(Vec<(TxKind, u16)>, usize), Error> {
    let overflow = |_| Error::Overflow { field: "level or layer" };
    let shape = &path.params.shape;
    let states = path.params.states_after(path.updates)?;
    let (mut txs, mut above) = (Vec::new(), 0);
    for place in 0..shape.levels() {
        above = txs.len();
        let level = u16::try_from(place).map_err(overflow)?;
        let layers = shape.layers_at(place);
        let first = if layers.is_empty() { TxKind::Static { level } } else { TxKind::Kickoff { level } };
        txs.push((first, 0));
        for (i, (layer, state)) in layers.iter().zip(states.at(place)).enumerate() {
            let kind = TxKind::State { level, layer: u16::try_from(i).map_err(overflow)?, state: *state };
            txs.push((kind, layer.sequence(*state)?));
        }
    }
    Ok((txs, above))
}

/// The same for the distributions of the leaf.
fn expected_distributions(path: &SignedPath) -> Result<Vec<(TxKind, u16)>, Error> {
    let layers = path.params.shape.layers_at(path.params.shape.arity.len());
    let mut all = vec![(TxKind::Distribution { position: 0 }, 0)];
    for (position, layer) in (1u16..).zip(layers) {
        all.push((TxKind::Distribution { position }, layer.distribution_sequence()?));
    }
    Ok(all)
}

/// Checks the form of a stored path.
///
/// # Errors
/// [`Error::Mismatch`], or a rule for outputs that is broken.
pub(crate) fn check(path: &SignedPath) -> Result<(), Error> {
    let kinds = |txs: &[SignedTx]| txs.iter().map(|tx| (tx.kind, tx.relative_delay)).collect::<Vec<_>>();
    let (txs, above) = expected(path)?;
    let start = usize::try_from(path.leaf_start).map_err(|_| Error::Overflow { field: "leaf_start" })?;
    if kinds(&path.path) != txs || start != above {
        return Err(Error::Mismatch { what: "transactions of a stored path" });
    }
    if kinds(&path.distributions) != expected_distributions(path)? {
        return Err(Error::Mismatch { what: "distributions of a stored path" });
    }
    let spec = LeafSpec {
        members: path.leaf.iter().map(|channel| channel.share.clone()).collect(),
        stock_sat: path.stock_sat,
        stock_script: path.stock_script.clone(),
        expiry_height: path.distribution_height()?,
    };
    let scripts: Vec<ScriptBuf> = path.leaf.iter().map(|channel| channel.script.clone()).collect();
    let outputs = spec.outputs(&scripts)?;
    // The last output is the anchor.
    let pays = |tx: &SignedTx| tx.tx.output.split_last().map(|(_, paid)| paid.to_vec());
    if path.path.last().and_then(pays) != Some(outputs) {
        return Err(Error::Mismatch { what: "outputs of a stored leaf" });
    }
    let shares = spec.distribution_outputs()?;
    let other = |tx: &SignedTx| pays(tx).as_ref() != Some(&shares);
    if path.distributions.iter().any(other) && !switch("watch.distributions") {
        return Err(Error::Mismatch { what: "outputs of a stored distribution" });
    }
    Ok(())
}
