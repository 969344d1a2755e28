//! Final balances of channels that are shut down (LSP): a record for each channel. A close of N channels writes N small
//! records then, and not N times the state of a factory with N clients.

use std::collections::HashMap;

use bitcoin::secp256k1::PublicKey;
use bitcoin::OutPoint;

use super::stored::Factory;
use crate::error::Error;
use crate::ldk::channel_id;
use crate::store::{records, Store};

const NAMESPACE: &str = "final_balances";
const VERSION: u32 = 1;

fn key(outpoint: OutPoint) -> String {
    hex::encode(channel_id(outpoint).0)
}

impl Factory {
    /// Keeps the final balances of a channel, msat: the client's and ours. On disk when it returns.
    ///
    /// # Errors
    /// [`Error::Store`]; then it is not known in memory either.
    pub(super) fn keep_final(
        &mut self,
        store: &Store,
        outpoint: OutPoint,
        client: PublicKey,
        balances: (u64, u64),
    ) -> Result<(), Error> {
        records::put(store, NAMESPACE, &key(outpoint), VERSION, &balances)?;
        self.state.finals.insert(client, balances);
        Ok(())
    }
}

/// Reads what was kept of the channels of these factories.
///
/// # Errors
/// [`Error::Corrupt`], [`Error::Store`].
pub(super) fn load<'a>(
    store: &Store,
    factories: impl IntoIterator<Item = &'a mut Factory>,
) -> Result<(), Error> {
    let kept: HashMap<String, (u64, u64)> = records::all(store, NAMESPACE, VERSION)?.into_iter().collect();
    if kept.is_empty() {
        return Ok(());
    }
    for factory in factories {
        for (outpoint, client) in factory.channels()? {
            if let (Some(client), Some(balances)) = (client, kept.get(&key(outpoint))) {
                factory.state.finals.insert(client, *balances);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factory::stored::{Signed, State};
    use crate::fuzzing::tests::factory;
    use lightning::util::persist::KVStoreSync;

    #[test]
    fn a_final_balance_is_kept_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).unwrap();
        let made = Factory::new(Signed::Lsp(Box::new(factory().0)), State::new([1; 32], Vec::new()));
        made.store_all(&store).unwrap();
        let id = hex::encode(made.id());
        let states = || store.read("factory_states", "", &id).unwrap();
        let before = states();

        let mut closing = made.clone();
        let channels = closing.channels().unwrap();
        let mut sizes = Vec::new();
        for (n, (outpoint, client)) in (1..).zip(&channels) {
            let balances = (n * 1000, 2_100_000_000_000_000_000 - n);
            closing.keep_final(&store, *outpoint, client.unwrap(), balances).unwrap();
            sizes.push(store.read(NAMESPACE, "", &key(*outpoint)).unwrap().len());
        }
        assert_eq!(states(), before, "the state of the whole factory was written for a balance");
        assert!(channels.len() == 3 && sizes.iter().all(|size| *size < 100), "{sizes:?}");

        // The next process knows them, also with a state that was written before the last ones.
        let mut again = Factory::load_all(&store).unwrap();
        assert!(again[0].state.finals.is_empty());
        load(&store, &mut again).unwrap();
        assert_eq!(again[0].state.finals, closing.state.finals);
        assert_eq!(again[0].state.finals.len(), 3);
    }
}
