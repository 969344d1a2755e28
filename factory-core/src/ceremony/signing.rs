//! The provider's side of many MuSig2 sessions: those of a tree, or of the part of it that an advance signs anew.
//!
//! Every (node, transaction) pair is a session of its own with its own nonces; the work on one node does not depend
//! on another's. A client's lists hold one entry per session of its path, root first, so the entries of a level
//! start at the same place for everybody.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{CryptoRng, RngCore, SeedableRng};

use crate::faults::switch;
use crate::musig::{
    verify_final, verify_partial, AggregateNonce, NonceBytes, PartialBytes, PublicNonce, SecretSession,
    Session, SignatureBytes, Signer,
};
use crate::node::Node;
use crate::parallel;
use crate::plan::index_error;
use crate::transaction::TreeTx;
use crate::tree::Tree;
use crate::Error;

/// One session after nonce aggregation.
struct Open {
    message: [u8; 32],
    session: Session,
    aggregate: NonceBytes,
    /// The provider's own partial signature. It never leaves this process.
    own: PartialBytes,
}

/// What one node's signers sign together.
pub(crate) struct Job<'a> {
    /// The node.
    pub node: &'a Node,
    /// What is signed.
    pub txs: Vec<&'a TreeTx>,
    /// Where the entries for `txs` start in the lists of the node's clients.
    pub offset: usize,
}

/// Outcome of [`Sessions::finish`].
pub(crate) enum Finished {
    /// One list of verified signatures per job.
    Signed(Vec<Vec<SignatureBytes>>),
    /// Tree positions of the clients whose partial signatures are wrong, and the session of each.
    Culprits(BTreeMap<usize, usize>),
}

/// Sessions after nonce aggregation, by job.
pub(crate) struct Sessions(Vec<Vec<Open>>);

fn entry<T: Copy>(list: Option<&Vec<T>>, at: usize) -> Result<T, Error> {
    let list = list.ok_or(Error::Empty { what: "list of a client" })?;
    list.get(at).copied().ok_or_else(|| index_error(at, list.len()))
}

impl Sessions {
    /// Draws the provider's nonces, aggregates them with the clients' and signs with them. `nonces` has one list per
    /// client of the factory in tree order; those of clients that sign no job are not looked at.
    pub(crate) fn start<R: RngCore + CryptoRng>(
        jobs: &[Job<'_>],
        signer: &Signer,
        nonces: &[Vec<PublicNonce>],
        rng: &mut R,
    ) -> Result<Self, Error> {
        // Seeds from one source in a fixed order, so that the threads need not share it.
        let seeded: Vec<_> = jobs
            .iter()
            .map(|job| {
                let mut seed = [0u8; 32];
                rng.fill_bytes(&mut seed);
                (job, seed)
            })
            .collect();
        let sessions = parallel::try_map(&seeded, |(job, seed)| {
            let (mut rng, node) = (StdRng::from_seed(*seed), job.node);
            let mut list = Vec::with_capacity(job.txs.len());
            for (k, tx) in job.txs.iter().enumerate() {
                let message = tx.sighash()?;
                let secret = SecretSession::of(signer, &node.key, message, &mut rng)?;
                let mut all = vec![secret.public()];
                for client in node.first..node.end {
                    all.push(entry(nonces.get(client), job.offset.saturating_add(k))?);
                }
                let aggregate = AggregateNonce::sum(&all)?;
                let (own, session) = secret.sign_in(&node.key, &aggregate)?;
                list.push(Open { message, session, aggregate: aggregate.to_bytes(), own });
            }
            Ok::<_, Error>(list)
        })?;
        Ok(Self(sessions))
    }

    /// The aggregate nonces of the jobs at these positions, one after the other.
    pub(crate) fn aggregates(&self, jobs: impl IntoIterator<Item = usize>) -> Result<Vec<NonceBytes>, Error> {
        let mut list = Vec::new();
        for position in jobs {
            let job = self.0.get(position).ok_or_else(|| index_error(position, self.0.len()))?;
            list.extend(job.iter().map(|s| s.aggregate));
        }
        Ok(list)
    }

    /// Adds the provider's partial signatures to the clients' and verifies every final signature. Only where one
    /// does not verify are the partials of that session checked, to name who is at fault.
    pub(crate) fn finish(
        self,
        jobs: &[Job<'_>],
        nonces: &[Vec<PublicNonce>],
        partials: &[Vec<PartialBytes>],
    ) -> Result<Finished, Error> {
        let work: Vec<_> = jobs.iter().zip(self.0).collect();
        let done = parallel::try_map(&work, |(job, sessions)| {
            let finish = |(k, session)| {
                let at = job.offset.saturating_add(k);
                Ok((at, finish_session(job.node, session, at, nonces, partials)?))
            };
            sessions.iter().enumerate().map(finish).collect::<Result<Vec<_>, Error>>()
        })?;
        let mut signed = Vec::with_capacity(done.len());
        let mut culprits = BTreeMap::new();
        for node in done {
            let mut list = Vec::with_capacity(node.len());
            for (at, outcome) in node {
                match outcome {
                    Ok(signature) => list.push(signature),
                    Err(clients) => {
                        for client in clients {
                            culprits.entry(client).or_insert(at);
                        }
                    }
                }
            }
            signed.push(list);
        }
        if culprits.is_empty() {
            Ok(Finished::Signed(signed))
        } else {
            Ok(Finished::Culprits(culprits))
        }
    }
}

/// All sessions of a tree, by node.
pub(super) struct TreeSigning(Sessions);

/// Every node of the tree with all that it signs.
fn jobs(tree: &Tree) -> Result<Vec<Job<'_>>, Error> {
    let offsets = offsets(tree);
    let job = |node| Ok(Job { node, txs: node.sessions().collect(), offset: offset(&offsets, node)? });
    tree.nodes().iter().map(job).collect()
}

impl TreeSigning {
    /// Number of sessions on every client's path.
    pub(super) fn path_sessions(tree: &Tree) -> usize {
        offsets(tree).last().copied().unwrap_or(0)
    }

    /// As [`Sessions::start`]. `nonces` has one list per client in tree order, each as long as
    /// [`TreeSigning::path_sessions`].
    pub(super) fn start<R: RngCore + CryptoRng>(
        tree: &Tree,
        signer: &Signer,
        nonces: &[Vec<PublicNonce>],
        rng: &mut R,
    ) -> Result<Self, Error> {
        Sessions::start(&jobs(tree)?, signer, nonces, rng).map(Self)
    }

    /// The aggregate nonces of client `index`'s path.
    pub(super) fn aggregates_for(&self, tree: &Tree, index: usize) -> Result<Vec<NonceBytes>, Error> {
        self.0.aggregates(tree.path_nodes(index)?)
    }

    /// As [`Sessions::finish`].
    pub(super) fn finish(
        self,
        tree: &Tree,
        nonces: &[Vec<PublicNonce>],
        partials: &[Vec<PartialBytes>],
    ) -> Result<Finished, Error> {
        self.0.finish(&jobs(tree)?, nonces, partials)
    }
}

/// The signature of one session, or the clients whose partials are wrong.
fn finish_session(
    node: &Node,
    open: &Open,
    at: usize,
    nonces: &[Vec<PublicNonce>],
    partials: &[Vec<PartialBytes>],
) -> Result<Result<SignatureBytes, Vec<usize>>, Error> {
    let Open { message, session, aggregate, own } = open;
    let mut all = vec![*own];
    for client in node.first..node.end {
        all.push(entry(partials.get(client), at)?);
    }
    let signature = session.aggregate(&node.key, &all)?;
    if verify_final(&node.key, message, &signature).is_ok() || switch("lsp.signatures.unchecked") {
        return Ok(Ok(signature));
    }
    let mut guilty = Vec::new();
    for client in node.first..node.end {
        let key = client_key(node, client)?;
        let nonce = entry(nonces.get(client), at)?.to_bytes();
        let partial = entry(partials.get(client), at)?;
        if verify_partial(&node.key, message, aggregate, &key, &nonce, &partial).is_err() {
            guilty.push(client);
        }
    }
    if guilty.is_empty() {
        // All clients are right, so the fault is our own.
        return Err(Error::BadSignature { what: "own partial signature".into() });
    }
    Ok(Err(guilty))
}

fn client_key(node: &Node, client: usize) -> Result<bitcoin::secp256k1::PublicKey, Error> {
    let at = client.saturating_sub(node.first);
    node.clients.get(at).copied().ok_or_else(|| index_error(at, node.clients.len()))
}

fn offset(offsets: &[usize], node: &Node) -> Result<usize, Error> {
    offsets.get(node.level).copied().ok_or_else(|| index_error(node.level, offsets.len()))
}

/// Start of each level's entries, and after the last one their number.
fn offsets(tree: &Tree) -> Vec<usize> {
    let mut offsets = vec![0usize];
    let mut sum = 0usize;
    for level in 0..tree.plan().params.shape.levels() {
        // All nodes of a level have the same layers, hence the same number of sessions.
        let count = tree.nodes().iter().find(|n| n.level == level).map_or(0, Node::session_count);
        sum = sum.saturating_add(count);
        offsets.push(sum);
    }
    offsets
}
