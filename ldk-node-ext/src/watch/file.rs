//! The exit file: all that somebody without a key needs to guard one leaf.
//!
//! It is JSON with a version and holds complete signed transactions, no secret. Whoever has it can bring the leaf to
//! the chain, and pay its clients after the expiry height, but no output of it to himself. So it is not for
//! everybody's eyes, and losing it loses nothing.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use bitcoin::consensus::encode::serialize;
use bitcoin::hashes::{sha256, Hash, HashEngine};
use bitcoin::secp256k1::PublicKey;
use bitcoin::{Network, Txid};
use factory_core::exit::ExitPlan;
use factory_core::faults::switch;
use factory_core::lifetime::Lifetime;
use factory_core::record::SignedPath;
use factory_core::transaction::SignedTx;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::util::write_private;

/// Version that this software writes and reads.
pub const EXIT_FILE_VERSION: u16 = 1;
/// Largest file that is read, bytes. The path of a factory of 1000 clients has less than 100 kB.
pub const MAX_EXIT_FILE_BYTES: u64 = 4 << 20;
/// Most transactions of a path, its levels and layers together.
const MAX_STEPS: usize = 256;

/// See the module's description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitFile {
    /// Version of the file.
    pub version: u16,
    /// The chain it is for.
    pub network: Network,
    /// Node id of the client, or of the LSP, that wrote it.
    pub node_id: PublicKey,
    /// Whether it is the LSP's: after the expiry height it wants the leaf on the chain, and no distribution, which
    /// would pay it nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lsp: bool,
    /// The signed path, the distributions and what they belong to.
    pub path: SignedPath,
}

fn bad(reason: impl Into<String>) -> Error {
    Error::invalid("exit_file", reason)
}

impl ExitFile {
    /// The file of a path, checked.
    ///
    /// # Errors
    /// As [`ExitFile::verify`].
    pub(crate) fn new(
        network: Network,
        node_id: PublicKey,
        lsp: bool,
        path: SignedPath,
    ) -> Result<Self, Error> {
        let file = Self { version: EXIT_FILE_VERSION, network, node_id, lsp, path };
        file.verify()?;
        Ok(file)
    }

    /// Reads a file and checks all of it.
    ///
    /// # Errors
    /// [`Error::Io`], and as [`ExitFile::parse`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let name = || path.display().to_string();
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_EXIT_FILE_BYTES.saturating_add(1)).read_to_end(&mut bytes))
            .map_err(|source| Error::Io { path: name(), source })?;
        Self::parse(&bytes).map_err(|e| bad(format!("{}: {e}", name())))
    }

    /// Reads the text of a file and checks all of it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it is too large, no exit file or of another version, and as
    /// [`ExitFile::verify`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Head {
            version: u16,
        }
        if u64::try_from(bytes.len()).map_or(true, |n| n > MAX_EXIT_FILE_BYTES) {
            return Err(bad(format!("larger than {MAX_EXIT_FILE_BYTES} bytes")));
        }
        let text = |e: serde_json::Error| bad(format!("not an exit file: {e}"));
        let head: Head = serde_json::from_slice(bytes).map_err(text)?;
        if head.version != EXIT_FILE_VERSION {
            return Err(bad(format!("version {}, this software reads {EXIT_FILE_VERSION}", head.version)));
        }
        let file: Self = serde_json::from_slice(bytes).map_err(text)?;
        file.verify()?;
        Ok(file)
    }

    /// Checks that the transactions form one chain from the funding output, that each signature is right, that the
    /// times are those of the factory's parameters, and that every distribution pays each client of the leaf the
    /// whole of its channel.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] or [`Error::Factory`] with the first thing that does not hold.
    pub fn verify(&self) -> Result<(), Error> {
        if self.version != EXIT_FILE_VERSION {
            return Err(bad(format!("version {}, this software reads {EXIT_FILE_VERSION}", self.version)));
        }
        let path = &self.path;
        if path.params.network != self.network {
            return Err(bad(format!("for {}, its factory is on {}", self.network, path.params.network)));
        }
        if path.path.len() > MAX_STEPS {
            return Err(bad(format!("{} transactions, at most {MAX_STEPS}", path.path.len())));
        }
        if path.leaf.is_empty() {
            return Err(bad("a leaf without a channel"));
        }
        if !switch("watch.signatures") {
            path.verify()?;
        }
        let clients = usize::try_from(path.clients).map_err(|_| bad("number of clients"))?;
        path.params.validate(clients)?;
        Lifetime::check(path.birth_height, path.expiry_height, &path.params, clients)?;
        self.plan()?;
        Ok(())
    }

    /// Writes the file whole or not at all, readable by its owner only; one that is there is replaced.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let io = |source| Error::Io { path: path.display().to_string(), source };
        let text = serde_json::to_string(self).map_err(|e| io(e.into()))?;
        write_private(path, &text).map_err(io)
    }

    /// The steps of an exit; the LSP's has no distributions.
    pub(crate) fn plan(&self) -> Result<ExitPlan, Error> {
        let mut plan = self.path.exit_plan()?;
        if self.lsp {
            plan.distributions.clear();
        }
        Ok(plan)
    }

    /// The leaf's last transaction, which has the channels' outputs.
    pub(crate) fn leaf_txid(&self) -> Option<Txid> {
        self.path.path.last().map(SignedTx::txid)
    }

    /// The position on the odometer: of two files of one leaf the greater is newer.
    pub fn position(&self) -> u64 {
        self.path.updates
    }

    /// The leaf, at whatever state, as one side of it sees it.
    pub fn leaf_id(&self) -> LeafId {
        let mut engine = sha256::Hash::engine();
        engine.input(&self.path.instance_id);
        engine.input(&serialize(&self.path.funding.outpoint));
        engine.input(&[u8::from(self.lsp)]);
        for channel in &self.path.leaf {
            engine.input(&channel.key.serialize());
        }
        LeafId(sha256::Hash::from_engine(engine).to_byte_array())
    }
}

/// Name of a leaf, whatever its state; hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeafId([u8; 32]);

impl fmt::Display for LeafId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for LeafId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let id = Self(hex::FromHex::from_hex(text).map_err(|e| Error::invalid("leaf_id", format!("{e}")))?);
        // One name for a leaf, and no other.
        match id.to_string() == text {
            true => Ok(id),
            false => Err(Error::invalid("leaf_id", "must be lower case")),
        }
    }
}
