//! What the operator wants otherwise for single clients than the settings say.
//!
//! Stored, and so in force after a restart; what is not said for a client follows the settings, also when those change.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use lightning::util::persist::KVStoreSync;

use super::decide::JitPolicy;
use crate::api::ClientJitPolicy;
use crate::config::{check_jit, RoleConfig};
use crate::error::Error;
use crate::node::{parse_node_id, Node, Parts};
use crate::store::{records, Store};
use crate::util::lock;

const NAMESPACE: &str = "jit_policies";
const VERSION: u32 = 1;
/// Clients with a policy of their own that there may be.
const MAX_POLICIES: usize = 100_000;

impl ClientJitPolicy {
    /// The settings with these in their place.
    fn over(&self, settings: &JitPolicy) -> JitPolicy {
        let mut policy = settings.clone();
        let set = |field: &mut u64, own: Option<u64>| *field = own.unwrap_or(*field);
        set(&mut policy.min_channel_sat, self.jit_min_channel_sat);
        set(&mut policy.max_channel_sat, self.jit_max_channel_sat);
        set(&mut policy.max_total_sat, self.jit_max_total_sat);
        let set = |field: &mut u32, own: Option<u32>| *field = own.unwrap_or(*field);
        set(&mut policy.max_channels, self.jit_max_channels);
        set(&mut policy.max_untaken, self.jit_max_untaken);
        set(&mut policy.max_per_day, self.jit_max_per_day);
        set(&mut policy.headroom_percent, self.jit_headroom_percent);
        policy.rotate_first = self.jit_rotate_first.unwrap_or(policy.rotate_first);
        policy.hold = self.jit_hold_secs.map_or(policy.hold, Duration::from_secs);
        policy
    }

    fn says_nothing(&self) -> bool {
        *self == Self { node_id: self.node_id.clone(), ..Self::default() }
    }
}

/// All of them.
pub(super) struct Policies {
    store: Arc<Store>,
    all: Mutex<BTreeMap<PublicKey, ClientJitPolicy>>,
}

impl Policies {
    pub(super) fn open(store: Arc<Store>) -> Result<Self, Error> {
        let mut all = BTreeMap::new();
        for (name, policy) in records::all::<ClientJitPolicy>(&*store, NAMESPACE, VERSION)? {
            let corrupt = |e: bitcoin::secp256k1::Error| Error::Corrupt {
                key: format!("{NAMESPACE}/{name}"),
                reason: e.to_string(),
            };
            all.insert(name.parse().map_err(corrupt)?, policy);
        }
        Ok(Self { store, all: Mutex::new(all) })
    }

    /// Sets one, or forgets it if it says nothing.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the setting, [`Error::Unavailable`] if there are too many, [`Error::Store`].
    fn set(&self, client: PublicKey, policy: ClientJitPolicy, settings: &JitPolicy) -> Result<(), Error> {
        check_jit(&policy.over(settings))?;
        let mut all = lock(&self.all);
        let key = client.to_string();
        if policy.says_nothing() {
            let gone = self.store.remove(NAMESPACE, "", &key, false);
            gone.map_err(|e| Error::Store(format!("{NAMESPACE}/{key}: {e}")))?;
            all.remove(&client);
            return Ok(());
        }
        if all.len() >= MAX_POLICIES && !all.contains_key(&client) {
            return Err(Error::Unavailable(format!("{MAX_POLICIES} clients have a policy of their own")));
        }
        let policy = ClientJitPolicy { node_id: key.clone(), ..policy };
        records::put(&*self.store, NAMESPACE, &key, VERSION, &policy)?;
        all.insert(client, policy);
        Ok(())
    }
}

impl Parts {
    fn jit_settings(&self) -> Option<&JitPolicy> {
        match &self.config.role {
            RoleConfig::Lsp(settings) => Some(&settings.jit),
            RoleConfig::Client(_) => None,
        }
    }

    /// The operator's policy for a client (LSP).
    pub(super) fn jit_policy(&self, client: &PublicKey) -> Option<JitPolicy> {
        let settings = self.jit_settings()?;
        let own = lock(&self.liquidity.policies.all).get(client).map(|own| own.over(settings));
        Some(own.unwrap_or_else(|| settings.clone()))
    }
}

impl Node {
    /// Clients for which something else is wanted than the settings say (LSP).
    pub fn jit_policies(&self) -> Vec<ClientJitPolicy> {
        lock(&self.parts().liquidity.policies.all).values().cloned().collect()
    }

    /// Sets what is wanted otherwise for a client, in the place of what was before; if nothing is, the settings hold for it
    /// again (LSP).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field, [`Error::Conflict`] on a client, [`Error::Unavailable`] if there are
    /// 100,000 of them, [`Error::Store`].
    pub fn set_jit_policy(&self, policy: ClientJitPolicy) -> Result<(), Error> {
        let client = parse_node_id(&policy.node_id)?;
        let settings = self.parts().jit_settings();
        let settings = settings.ok_or_else(|| Error::Conflict("only an LSP opens JIT channels".into()))?;
        self.parts().liquidity.policies.set(client, policy, settings)?;
        self.parts().liquidity.wake();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_its_own_policy_until_nothing_is_said_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = || Arc::new(Store::open(&dir.path().join("db")).unwrap());
        let client: PublicKey =
            "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798".parse().unwrap();
        let settings = JitPolicy::default();
        let of = |policies: &Policies| lock(&policies.all).get(&client).map(|own| own.over(&settings));
        let none = ClientJitPolicy { jit_max_channels: Some(0), ..ClientJitPolicy::default() };
        {
            let policies = Policies::open(store()).unwrap();
            assert_eq!(of(&policies), None);
            policies.set(client, none.clone(), &settings).unwrap();
            let wrong = ClientJitPolicy { jit_min_channel_sat: Some(1), ..none };
            let refused = policies.set(client, wrong, &settings).unwrap_err().to_string();
            assert!(refused.contains("jit_min_channel_sat") && refused.contains("20000"), "{refused}");
        }
        let policies = Policies::open(store()).unwrap();
        assert_eq!(of(&policies), Some(JitPolicy { max_channels: 0, ..settings.clone() }));
        let patient = ClientJitPolicy {
            jit_hold_secs: Some(300),
            jit_rotate_first: Some(false),
            jit_max_total_sat: Some(7),
            ..ClientJitPolicy::default()
        };
        policies.set(client, patient, &settings).unwrap();
        let wanted = JitPolicy {
            hold: Duration::from_secs(300),
            rotate_first: false,
            max_total_sat: 7,
            ..settings.clone()
        };
        assert_eq!(of(&policies), Some(wanted), "in the place of what was before");
        policies.set(client, ClientJitPolicy::default(), &settings).unwrap();
        drop(policies);
        assert_eq!(of(&Policies::open(store()).unwrap()), None);
    }
}
