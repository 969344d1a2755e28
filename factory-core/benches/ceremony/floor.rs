//! The least that the ceremony can cost: what libsecp256k1 takes for each operation that BIP 327 asks for, each done
//! once, measured on the raw bindings in the same run.

use std::collections::BTreeMap;
use std::hint::black_box;

use factory_core::geometry;
use factory_core::params::Params;
use rand::rngs::StdRng;
use rand::SeedableRng;
use secp256k1_musig as secp;
use secp256k1_musig::musig::{
    AggregatedNonce, KeyAggCache, PartialSignature, PublicNonce, Session, SessionSecretRand,
};

use crate::clock::unit_us;

/// Repetitions of a measurement.
const COUNT: usize = 101;

/// Costs of one operation, in microseconds of CPU.
pub struct Units {
    /// Reading a compressed public key.
    pub key: f64,
    /// Drawing a nonce pair.
    pub nonce: f64,
    /// Reading somebody's public nonce.
    pub read_nonce: f64,
    /// Reading an aggregate nonce.
    pub read_aggregate: f64,
    /// A session from an aggregate nonce and a message.
    pub session: f64,
    /// One partial signature.
    pub sign: f64,
    /// Verifying a final signature.
    pub verify: f64,
    /// Verifying a partial signature.
    pub verify_partial: f64,
    /// By number of signers.
    sized: BTreeMap<usize, Sized>,
}

/// Costs that depend on the number of signers.
#[derive(Clone, Copy)]
struct Sized {
    /// Aggregating the keys, with the tweak.
    keys: f64,
    /// Adding up the nonces.
    nonces: f64,
    /// Adding up the partial signatures, reading included.
    partials: f64,
}

/// What a ceremony costs at least, milliseconds of CPU.
pub struct Floor {
    pub lsp: f64,
    pub client: f64,
}

fn pair(i: usize) -> secp::Keypair {
    let mut secret = [1u8; 32];
    secret[..8].copy_from_slice(&(i as u64 + 1).to_be_bytes());
    secp::Keypair::from_secret_bytes(secret).expect("a secret key")
}

impl Units {
    /// Measures, for nodes with these numbers of signers.
    pub fn measure(sizes: &[usize]) -> Self {
        let most = sizes.iter().copied().max().unwrap_or(2).max(2);
        let pairs: Vec<_> = (0..most).map(pair).collect();
        let keys: Vec<_> = pairs.iter().map(secp::Keypair::public_key).collect();
        let bytes: Vec<_> = keys.iter().map(secp::PublicKey::serialize).collect();
        let tweak = secp::Scalar::from_be_bytes([3; 32]).expect("a scalar");
        let cache = |n: usize| {
            let mut cache = KeyAggCache::new(&keys[..n].iter().collect::<Vec<_>>());
            cache.pubkey_xonly_tweak_add(&tweak).expect("a tweak");
            cache
        };
        let message = [5u8; 32];
        let mut rng = StdRng::seed_from_u64(1);
        let mut draw = |cache: &KeyAggCache, i: usize| {
            let own = &pairs[i];
            secp::musig::new_nonce_pair(
                SessionSecretRand::from_rng(&mut rng),
                Some(cache),
                Some(own.secret_key()),
                own.public_key(),
                Some(&message),
                None,
            )
        };
        let two = cache(2);
        let public: Vec<_> = (0..most).map(|i| draw(&two, i % 2).1).collect();
        let wire: Vec<_> = public.iter().map(PublicNonce::serialize).collect();

        let sized = sizes
            .iter()
            .map(|n| {
                let count = if *n > 64 { COUNT / 4 } else { COUNT };
                let nonces: Vec<_> = public[..*n].iter().collect();
                let aggregate = AggregatedNonce::new(&nonces);
                let session = Session::new(&two, aggregate, &message);
                let partials: Vec<_> = (0..*n).map(|i| [(i % 100) as u8 + 1; 32]).collect();
                let costs = Sized {
                    keys: unit_us(count, |_| {
                        black_box(cache(*n));
                    }),
                    nonces: unit_us(count, |_| {
                        black_box(AggregatedNonce::new(&nonces).serialize());
                    }),
                    partials: unit_us(count, |_| {
                        let read: Vec<_> = partials
                            .iter()
                            .map(|p| PartialSignature::from_byte_array(p).expect("a scalar"))
                            .collect();
                        black_box(session.partial_sig_agg(&read.iter().collect::<Vec<_>>()));
                    }),
                };
                (*n, costs)
            })
            .collect();

        // A real session of two, so that what is verified is right.
        let mut secret: Vec<_> = (0..COUNT).map(|_| Some(draw(&two, 0).0)).collect();
        let own: Vec<_> = (0..2).map(|i| draw(&two, i)).collect();
        let aggregate = AggregatedNonce::new(&own.iter().map(|(_, p)| p).collect::<Vec<_>>());
        let wire_aggregate = aggregate.serialize();
        let session = Session::new(&two, aggregate, &message);
        let public_of: Vec<_> = own.iter().map(|(_, p)| *p).collect();
        let partials: Vec<_> = own
            .into_iter()
            .enumerate()
            .map(|(i, (nonce, _))| session.partial_sign(nonce, &pairs[i], &two))
            .collect();
        let signature = session.partial_sig_agg(&partials.iter().collect::<Vec<_>>()).assume_valid();
        let signature = secp::schnorr::Signature::from_byte_array(signature.to_byte_array());
        Self {
            key: unit_us(COUNT, |i| {
                let key = secp::PublicKey::from_byte_array_compressed(bytes[i % most]).expect("a key");
                black_box(key);
            }),
            nonce: unit_us(COUNT, |_| {
                black_box(draw(&two, 0));
            }),
            read_nonce: unit_us(COUNT, |i| {
                black_box(PublicNonce::from_byte_array(&wire[i % most]).expect("a nonce"));
            }),
            read_aggregate: unit_us(COUNT, |_| {
                black_box(AggregatedNonce::from_byte_array(&wire_aggregate).expect("a nonce"));
            }),
            session: unit_us(COUNT, |_| {
                black_box(Session::new(&two, aggregate, &message));
            }),
            sign: unit_us(COUNT, |i| {
                if let Some(nonce) = secret[i].take() {
                    black_box(session.partial_sign(nonce, &pairs[0], &two));
                }
            }),
            verify: unit_us(COUNT, |_| {
                secp::schnorr::verify(&signature, &message, &two.agg_pk()).expect("a right signature");
            }),
            verify_partial: unit_us(COUNT, |_| {
                assert!(session.partial_verify(&two, &partials[1], &public_of[1], keys[1]));
            }),
            sized,
        }
    }

    /// The cheaper of two measurements, each: whatever else runs on the machine only adds.
    pub fn min(mut self, other: &Self) -> Self {
        self.key = self.key.min(other.key);
        self.nonce = self.nonce.min(other.nonce);
        self.read_nonce = self.read_nonce.min(other.read_nonce);
        self.read_aggregate = self.read_aggregate.min(other.read_aggregate);
        self.session = self.session.min(other.session);
        self.sign = self.sign.min(other.sign);
        self.verify = self.verify.min(other.verify);
        self.verify_partial = self.verify_partial.min(other.verify_partial);
        for (signers, costs) in &mut self.sized {
            let other = other.sized(*signers);
            costs.keys = costs.keys.min(other.keys);
            costs.nonces = costs.nonces.min(other.nonces);
            costs.partials = costs.partials.min(other.partials);
        }
        self
    }

    fn sized(&self, signers: usize) -> Sized {
        self.sized.get(&signers).copied().expect("measured")
    }

    /// The floor of a factory of `clients` clients. `sessions` has, by level, the sessions of one node.
    pub fn floor(&self, params: &Params, clients: usize, sessions: &[usize]) -> Floor {
        let mut lsp = self.key * clients as f64;
        for node in geometry::nodes(&params.shape, clients).expect("a valid shape") {
            let below = node.end - node.first;
            let costs = self.sized(below + 1);
            let session = self.nonce
                + self.read_nonce * below as f64
                + costs.nonces
                + self.session
                + self.sign
                + costs.partials
                + self.verify;
            lsp += costs.keys + session * sessions[node.level] as f64;
        }
        let mut client = self.key * (clients + 1) as f64;
        for node in geometry::path(&params.shape, clients, 0).expect("a valid shape") {
            let session = self.nonce + self.read_aggregate + self.session + self.sign + self.verify;
            client += self.sized(node.end - node.first + 1).keys + session * sessions[node.level] as f64;
        }
        Floor { lsp: lsp / 1e3, client: client / 1e3 }
    }
}

/// The numbers of signers of the nodes of a factory.
pub fn signers(params: &Params, clients: usize) -> Vec<usize> {
    let nodes = geometry::nodes(&params.shape, clients).expect("a valid shape");
    let mut sizes: Vec<_> = nodes.iter().map(|node| node.end - node.first + 1).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}
