//! Which of the connections that were made to us has to go when there are too many.
//!
//! Anybody can open connections, and identities cost nothing. So a connection is worth what its peer has at stake:
//! a peer with a channel is never given up for somebody who has none, and those keep a share of the places that
//! strangers cannot have. Among strangers the newcomer gets the place of an old one, from the address that has most
//! of them: whoever comes in between a thousand idle ones is served.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use bitcoin::secp256k1::PublicKey;
use factory_core::faults::switch;

/// How long a connection may take to say who it is, Noise handshake and `init` included.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(10);

/// What is known of the peer behind a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// The handshake is not done.
    Unnamed,
    /// It has a node id, and nothing else with us.
    Stranger(PublicKey),
    /// As a stranger, and it speaks the factory protocol: it may want to become a client.
    Applicant(PublicKey),
    /// It has a channel with us.
    Partner(PublicKey),
}

#[derive(Debug)]
struct Connection {
    since: Instant,
    source: Source,
    standing: Standing,
}

/// Whoever can have this address can have the others that count as the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Source([u8; 8]);

impl Source {
    /// An IPv4 address, or the /64 of an IPv6 address.
    fn of(address: IpAddr) -> Self {
        let mut bytes = [0; 8];
        match address.to_canonical() {
            IpAddr::V4(v4) => bytes[..4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => bytes.copy_from_slice(&v6.octets()[..8]),
        }
        Self(bytes)
    }
}

/// A connection that has to end, and how it can be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Surplus {
    /// By its socket: LDK does not know it by name yet.
    Unnamed(u64),
    /// By its node id.
    Peer(u64, PublicKey),
}

/// The connections that others made to this node.
#[derive(Debug)]
pub(super) struct Connections {
    all: HashMap<u64, Connection>,
    max: usize,
}

impl Connections {
    /// At most `max` connections of peers with a channel; of those up to half may be used by peers without one, and
    /// an eighth on top by those that have not said who they are.
    pub(super) fn new(max: usize) -> Self {
        Self { all: HashMap::new(), max: max.max(8) }
    }

    fn max_unnamed(&self) -> usize {
        self.max / 8
    }

    fn max_strangers(&self) -> usize {
        self.max / 2
    }

    /// No more are taken than this, whoever they are: the limit and those that just have been told to go.
    pub(super) fn hard_limit(&self) -> usize {
        self.max + 2 * self.max_unnamed()
    }

    /// A connection was accepted.
    pub(super) fn opened(&mut self, id: u64, address: IpAddr, now: Instant) {
        let connection = Connection { since: now, source: Source::of(address), standing: Standing::Unnamed };
        self.all.insert(id, connection);
    }

    /// A connection ended.
    pub(super) fn closed(&mut self, id: u64) {
        self.all.remove(&id);
    }

    /// The handshake of a connection is done.
    pub(super) fn named(&mut self, id: u64, peer: PublicKey) {
        if let Some(c) = self.all.get_mut(&id).filter(|c| c.standing == Standing::Unnamed) {
            c.standing = Standing::Stranger(peer);
        }
    }

    /// Takes out all that are too many: `partner` says whether a peer has a channel, `applies` whether it speaks the
    /// factory protocol. Every peer is looked up only if it is one with a name that has to go: whoever opens connections
    /// and says nothing costs no more than those.
    pub(super) fn thin(
        &mut self,
        partner: impl Fn(&PublicKey) -> bool,
        applies: impl Fn(&PublicKey) -> bool,
    ) -> Vec<Surplus> {
        let mut gone = Vec::new();
        if !switch("net.judges_everybody") {
            while self.counts().0 > self.max_unnamed() {
                gone.extend(self.take_surplus());
            }
        }
        if self.is_crowded() {
            self.judge(partner, applies);
            gone.extend(std::iter::from_fn(|| self.take_surplus()));
        }
        gone
    }

    /// Looks again at what each peer is.
    fn judge(&mut self, partner: impl Fn(&PublicKey) -> bool, applies: impl Fn(&PublicKey) -> bool) {
        for c in self.all.values_mut() {
            let (Standing::Stranger(peer) | Standing::Applicant(peer) | Standing::Partner(peer)) = c.standing
            else {
                continue;
            };
            c.standing = if partner(&peer) {
                Standing::Partner(peer)
            } else if applies(&peer) {
                Standing::Applicant(peer)
            } else {
                Standing::Stranger(peer)
            };
        }
    }

    /// Takes out those that have not said in time who they are.
    pub(super) fn take_overdue(&mut self, now: Instant) -> Vec<u64> {
        let late = |c: &Connection| c.standing == Standing::Unnamed && now - c.since >= HANDSHAKE;
        let ids: Vec<u64> = self.all.iter().filter(|(_, c)| late(c)).map(|(id, _)| *id).collect();
        ids.iter().for_each(|id| self.closed(*id));
        ids
    }

    /// Whether one has to go, as far as is known without [`Self::judge`].
    pub(super) fn is_crowded(&self) -> bool {
        let (unnamed, strangers) = self.counts();
        unnamed > self.max_unnamed()
            || strangers > self.max_strangers()
            || self.all.len() - unnamed > self.max
    }

    /// How many have no name yet, and how many have nothing with us.
    fn counts(&self) -> (usize, usize) {
        let count = |wanted: fn(Standing) -> bool| self.all.values().filter(|c| wanted(c.standing)).count();
        let stranger = |s| matches!(s, Standing::Stranger(_) | Standing::Applicant(_));
        (count(|s| s == Standing::Unnamed), count(stranger))
    }

    /// Takes out one that is too many, if there is one; first those without a name.
    fn take_surplus(&mut self) -> Option<Surplus> {
        let (unnamed, strangers) = self.counts();
        let full = self.all.len() - unnamed > self.max;
        let victim = if unnamed > self.max_unnamed() {
            self.oldest(|s| s == Standing::Unnamed)
        } else if strangers > self.max_strangers() || full {
            self.oldest(|s| matches!(s, Standing::Stranger(_)))
                .or_else(|| self.oldest(|s| matches!(s, Standing::Applicant(_))))
                .or_else(|| self.newest_partner())
        } else {
            None
        }?;
        let gone = self.all.remove(&victim)?;
        Some(match gone.standing {
            Standing::Unnamed => Surplus::Unnamed(victim),
            Standing::Stranger(peer) | Standing::Applicant(peer) | Standing::Partner(peer) => {
                Surplus::Peer(victim, peer)
            }
        })
    }

    /// Of those the oldest one of the source that has most of them.
    fn oldest(&self, wanted: impl Fn(Standing) -> bool) -> Option<u64> {
        let mut per_source: HashMap<Source, (usize, Instant, u64)> = HashMap::new();
        for (id, c) in self.all.iter().filter(|(_, c)| wanted(c.standing)) {
            let entry = per_source.entry(c.source).or_insert((0, c.since, *id));
            entry.0 += 1;
            if (c.since, *id) < (entry.1, entry.2) {
                (entry.1, entry.2) = (c.since, *id);
            }
        }
        per_source
            .into_values()
            .max_by_key(|(count, since, id)| (*count, std::cmp::Reverse((*since, *id))))
            .map(|(_, _, id)| id)
    }

    /// Only partners are left: the last one to come finds no place.
    fn newest_partner(&self) -> Option<u64> {
        let partners = self.all.iter().filter(|(_, c)| matches!(c.standing, Standing::Partner(_)));
        partners.max_by_key(|(id, c)| (c.since, **id)).map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::secp256k1::{Secp256k1, SecretKey};

    fn key(n: u64) -> PublicKey {
        let mut bytes = [1; 32];
        bytes[24..].copy_from_slice(&n.to_be_bytes());
        PublicKey::from_secret_key(&Secp256k1::new(), &SecretKey::from_slice(&bytes).unwrap())
    }

    fn from(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    /// A thousand idle connections push out each other, and not the one that somebody else just began.
    #[test]
    fn a_newcomer_takes_the_place_of_an_idle_one() {
        let now = Instant::now();
        let mut table = Connections::new(80);
        table.opened(5000, from(2), now);
        let mut gone = Vec::new();
        for id in 0..1000 {
            table.opened(id, from(1), now + Duration::from_millis(id));
            while let Some(surplus) = table.take_surplus() {
                gone.push(surplus);
            }
        }
        assert_eq!(gone.len(), 991);
        assert_eq!(gone[0], Surplus::Unnamed(0), "the oldest first");
        assert!(table.all.contains_key(&5000));
        assert_eq!(table.counts(), (10, 0));
        let late = table.take_overdue(now + HANDSHAKE + Duration::from_millis(995));
        assert_eq!(late.len(), 6, "5000 and 991 to 995 have had their time");
        assert!(table.take_overdue(now).is_empty());
    }

    #[test]
    fn strangers_never_take_a_partners_place() {
        let now = Instant::now();
        let mut table = Connections::new(16);
        let partners: Vec<PublicKey> = (0..12).map(key).collect();
        let applicants: Vec<PublicKey> = (100..104).map(key).collect();
        let mut lost = Vec::new();
        for id in (0..12).chain(100..104).chain(1000..1050) {
            table.opened(id, from(1), now + Duration::from_millis(id));
            table.named(id, key(id));
            table.judge(|p| partners.contains(p), |p| applicants.contains(p));
            while let Some(surplus) = table.take_surplus() {
                let Surplus::Peer(id, _) = surplus else { panic!("{surplus:?}") };
                lost.push(id);
            }
        }
        assert!(lost.iter().all(|id| *id >= 1000), "who wants something goes last: {lost:?}");
        assert_eq!(table.all.len(), 16);
        // Partners take what strangers have, and only when all are partners one has to wait.
        let more: Vec<PublicKey> = (200..205).map(key).collect();
        for (id, peer) in (200..).zip(&more) {
            table.opened(id, from(1), now + Duration::from_secs(2));
            table.named(id, *peer);
            table.judge(|p| partners.contains(p) || more.contains(p), |_| true);
            while let Some(Surplus::Peer(id, _)) = table.take_surplus() {
                lost.push(id);
            }
        }
        assert_eq!(table.all.len(), 16);
        assert!(!lost.iter().any(|id| *id < 12), "{lost:?}");
        assert_eq!(lost.iter().filter(|id| (200..205).contains(*id)).count(), 1);
    }

    #[test]
    fn nobody_is_looked_up_for_connections_without_a_name() {
        let now = Instant::now();
        let mut table = Connections::new(80);
        let asked = std::cell::Cell::new(0);
        let partner = |_: &PublicKey| {
            asked.set(asked.get() + 1);
            false
        };
        for id in 0..40 {
            table.opened(id, from(1), now);
            table.named(id, key(id));
        }
        let mut gone = Vec::new();
        for id in 1000..2000 {
            table.opened(id, from(2), now + Duration::from_millis(id));
            gone.extend(table.thin(partner, |_| false));
        }
        assert_eq!(gone.len(), 990);
        assert!(gone.iter().all(|s| matches!(s, Surplus::Unnamed(_))));
        assert_eq!(asked.get(), 0, "peers looked up for connections that say nothing");
        // One of them says who it is, and there are too many strangers.
        table.named(1999, key(1999));
        let gone = table.thin(partner, |_| false);
        assert_eq!((gone, asked.get()), (vec![Surplus::Peer(0, key(0))], 41));
    }

    #[test]
    fn a_source_is_what_one_customer_gets() {
        let of = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::2"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
