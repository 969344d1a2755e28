//! The LSP cheats at the root of it all: it spends a coin of a factory's funding transaction a second time.
//!
//! The key comes from the seed in the LSP's data folder (BIP 86, as its wallet derives it), since no program of ours
//! would do this.

use anyhow::{anyhow, Context, Result};
use bitcoin::bip32::{DerivationPath, Xpriv};
use bitcoin::consensus::encode::serialize_hex;
use bitcoin::key::{Secp256k1, TapTweak};
use bitcoin::secp256k1::Message;
use bitcoin::sighash::{Prevouts, SighashCache, TapSighashType};
use bitcoin::{Address, Amount, Network, ScriptBuf, Transaction, TxOut, Witness};
use serde_json::{json, Value};

use crate::{Bitcoind, Lsp};

/// Fee of the second spend, sat.
pub const FEE: u64 = 5_000;
/// Addresses of the wallet that are tried.
const ADDRESSES: u32 = 100;

/// A transaction that spends the first coin of `funding` back to the LSP's own script.
///
/// # Errors
/// If the coin's key is not among the first of the LSP's seed.
pub fn rival_of(lsp: &Lsp, bitcoind: &Bitcoind, funding: &Transaction) -> Result<Transaction> {
    let secp = Secp256k1::new();
    let text = std::fs::read_to_string(lsp.data_dir().join("seed")).context("read the LSP's seed")?;
    let root = Xpriv::new_master(Network::Regtest, &hex::decode(text.trim())?)?;
    let mut input = funding.input.first().ok_or_else(|| anyhow!("no input"))?.clone();
    let parent = bitcoind.transaction(input.previous_output.txid)?.ok_or_else(|| anyhow!("unknown coin"))?;
    let coin = parent.output.get(usize::try_from(input.previous_output.vout)?).cloned();
    let coin = coin.ok_or_else(|| anyhow!("no such coin"))?;
    let pair = (0..2)
        .flat_map(|change| (0..ADDRESSES).map(move |number| format!("m/86'/1'/0'/{change}/{number}")))
        .find_map(|path| {
            let path: DerivationPath = path.parse().ok()?;
            let pair = root.derive_priv(&secp, &path).ok()?.to_keypair(&secp);
            let script = ScriptBuf::new_p2tr(&secp, pair.x_only_public_key().0, None);
            (script == coin.script_pubkey).then_some(pair)
        });
    let pair = pair.ok_or_else(|| anyhow!("none of the LSP's keys"))?;
    input.witness = Witness::new();
    let value = coin.value.checked_sub(Amount::from_sat(FEE)).ok_or_else(|| anyhow!("a tiny coin"))?;
    let output = vec![TxOut { value, script_pubkey: coin.script_pubkey.clone() }];
    let mut tx = Transaction { input: vec![input], output, ..funding.clone() };
    let mut cache = SighashCache::new(&mut tx);
    let hash = cache.taproot_key_spend_signature_hash(0, &Prevouts::All(&[coin]), TapSighashType::Default)?;
    let tweaked = pair.tap_tweak(&secp, None);
    let signature = secp.sign_schnorr(&Message::from(hash), &tweaked.to_keypair());
    let signature = bitcoin::taproot::Signature { signature, sighash_type: TapSighashType::Default };
    *cache.witness_mut(0).ok_or_else(|| anyhow!("no input"))? = Witness::p2tr_key_spend(&signature);
    Ok(tx)
}

/// Mines a block with just this transaction, whatever the mempool holds.
///
/// # Errors
/// If it is not valid.
pub fn mine_only(bitcoind: &Bitcoind, tx: &Transaction) -> Result<()> {
    let script = ScriptBuf::from_bytes(rand::random::<[u8; 32]>().to_vec());
    let nobody = Address::p2wsh(&script, Network::Regtest).to_string();
    bitcoind.rpc().call::<Value>("generateblock", json!([nobody, [serialize_hex(tx)]]))?;
    Ok(())
}
