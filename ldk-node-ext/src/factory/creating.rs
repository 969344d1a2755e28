//! A ceremony under way at the LSP, and what the API shows of it.

use bitcoin::psbt::Psbt;
use bitcoin::secp256k1::PublicKey;
use bolt_tlv::payload::Payload;
use factory_core::ceremony::{LspCeremony, Phase};
use factory_core::faults::switch;
use lightning::ln::types::ChannelId;

use super::Timer;
use crate::api::{self, ExcludedClient, FactoryMember, FactoryState, MemberState};
use crate::ldk::InstanceId;

/// A channel opened for an attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttemptChannel {
    pub(super) temporary: ChannelId,
    /// The id it has once its funding is known.
    pub(super) funded: Option<ChannelId>,
    pub(super) client: PublicKey,
}

/// A ceremony under way.
pub(super) struct Creating {
    pub(super) machine: LspCeremony,
    pub(super) salt: [u8; 32],
    pub(super) psbt: Option<Psbt>,
    pub(super) timer: Option<Timer>,
    pub(super) birth_height: u32,
    /// The plan's delay of a commitment's own output, blocks.
    pub(super) to_self_delay: u16,
    pub(super) state: FactoryState,
    pub(super) members: Vec<FactoryMember>,
    pub(super) excluded: Vec<ExcludedClient>,
    pub(super) channels: Vec<AttemptChannel>,
}

pub(super) fn api_state(phase: Phase) -> FactoryState {
    match phase {
        Phase::Inviting => FactoryState::Inviting,
        Phase::Planning => FactoryState::Planning,
        Phase::Opening => FactoryState::Opening,
        Phase::Funding => FactoryState::Funding,
        Phase::Nonces => FactoryState::Nonces,
        Phase::Partials => FactoryState::Partials,
        Phase::Recording | Phase::Persisting => FactoryState::Persisting,
        Phase::Done => FactoryState::Confirming,
        Phase::Failed => FactoryState::Failed,
    }
}

pub(super) fn member_state(payload: &Payload) -> Option<MemberState> {
    match payload {
        Payload::Accept(_) => Some(MemberState::Accepted),
        Payload::PlanOk(_) => Some(MemberState::Planned),
        Payload::Nonces(_) => Some(MemberState::Opened),
        Payload::Partials(_) => Some(MemberState::Signed),
        Payload::Persisted(_) => Some(MemberState::Persisted),
        _ => None,
    }
}

impl Creating {
    /// What the API shows.
    pub(super) fn info(&self, id: &InstanceId, failure: Option<String>) -> api::FactoryInfo {
        api::FactoryInfo {
            instance_id: hex::encode(id),
            state: if failure.is_some() { FactoryState::Failed } else { self.state },
            failure,
            funding: None,
            funding_sat: 0,
            funding_confirmations: 0,
            birth_height: self.birth_height,
            expiry_height: 0,
            clients: self.members.clone(),
            excluded: self.excluded.clone(),
            tree: Vec::new(),
            deadlines: Vec::new(),
            report: None,
            close: None,
            exits: Vec::new(),
            exit_reserve: None,
            leaves: Vec::new(),
        }
    }

    pub(super) fn set_member(&mut self, client: &PublicKey, state: MemberState, reason: Option<String>) {
        note(&mut self.members, client, state, reason);
    }
}

/// Notes what a client has done. Who has been left out stays so, whatever it goes on sending.
fn note(members: &mut [FactoryMember], client: &PublicKey, state: MemberState, reason: Option<String>) {
    let id = client.to_string();
    let inside = |m: &&mut FactoryMember| m.node_id == id && m.state != MemberState::Excluded;
    if let Some(m) = members.iter_mut().find(inside) {
        m.state = state;
        m.reason = reason;
    }
}

/// Whether all others have stored their exits.
fn is_last_to_persist(members: &[FactoryMember], client: &PublicKey) -> bool {
    let id = client.to_string();
    let mut others = members.iter().filter(|m| m.state != MemberState::Excluded && m.node_id != id);
    others.all(|m| m.state == MemberState::Persisted)
}

/// See [`Creating::lost_channels`]: those of this client, and everybody's before the message that may let the funding
/// transaction out. To list everybody's for every message would take time with the square of the number of clients.
fn lost(
    channels: &[AttemptChannel],
    members: &[FactoryMember],
    client: &PublicKey,
    payload: &Payload,
    mut open: impl FnMut(&PublicKey) -> Vec<ChannelId>,
) -> Vec<AttemptChannel> {
    let last = matches!(payload, Payload::Persisted(_)) && is_last_to_persist(members, client);
    let everybody = last || switch("lsp.lists_every_channel");
    let asked = channels.iter().filter(|c| everybody || c.client.eq_fast_unstable(client));
    let funded = asked.filter_map(|c| c.funded.map(|f| (f, *c)));
    funded.filter(|(f, c)| !open(&c.client).contains(f)).map(|(_, c)| c).collect()
}

impl Creating {
    /// The channels that LDK does not have any more, as far as that has to be known before a client's message is
    /// heard. `open` lists a client's channels.
    pub(super) fn lost_channels(
        &self,
        client: &PublicKey,
        payload: &Payload,
        open: impl FnMut(&PublicKey) -> Vec<ChannelId>,
    ) -> Vec<AttemptChannel> {
        lost(&self.channels, &self.members, client, payload, open)
    }

    /// Whether a client takes part.
    pub(super) fn has(&self, client: &PublicKey) -> bool {
        let id = client.to_string();
        self.members.iter().any(|m| m.node_id == id && m.state != MemberState::Excluded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bolt_tlv::payload;

    fn member(client: &PublicKey) -> FactoryMember {
        FactoryMember {
            node_id: client.to_string(),
            capacity_sat: 1,
            push_sat: 0,
            channel_id: None,
            state: MemberState::Invited,
            reason: None,
        }
    }

    #[test]
    fn ldk_lists_one_clients_channels_a_message() {
        const CLIENTS: u8 = 40;
        let secp = bitcoin::secp256k1::Secp256k1::new();
        let secret = |n| bitcoin::secp256k1::SecretKey::from_slice(&[n; 32]).unwrap();
        let clients: Vec<PublicKey> = (1..=CLIENTS).map(|n| secret(n).public_key(&secp)).collect();
        let mut members: Vec<FactoryMember> = clients.iter().map(member).collect();
        let funded = |n: usize| ChannelId([u8::try_from(n).unwrap(); 32]);
        let channels: Vec<AttemptChannel> = clients
            .iter()
            .enumerate()
            .map(|(n, client)| AttemptChannel {
                temporary: ChannelId([99; 32]),
                funded: Some(funded(n)),
                client: *client,
            })
            .collect();
        let (instance_id, attempt) = ([1; 32], 0);
        let rounds = [
            Payload::from(payload::Nonces { instance_id, attempt, nonces: Vec::new() }),
            Payload::from(payload::Partials { instance_id, attempt, partials: Vec::new() }),
            Payload::from(payload::Persisted { instance_id, attempt }),
        ];
        // LDK has closed the channel of the second client.
        let gone = 1;
        for (round, payload) in rounds.iter().enumerate() {
            for (n, client) in clients.iter().enumerate() {
                let mut listed = 0;
                let open = |peer: &PublicKey| {
                    listed += 1;
                    let of_peer = clients.iter().position(|c| c == peer && *c != clients[gone]);
                    of_peer.map(funded).into_iter().collect()
                };
                let lost = lost(&channels, &members, client, payload, open);
                // Everybody's before the funding transaction may go out.
                let last = round == 2 && n + 1 == clients.len();
                assert_eq!(listed, if last { clients.len() } else { 1 }, "listings of channels");
                let expected = if n == gone || last { vec![funded(gone)] } else { Vec::new() };
                assert_eq!(lost.iter().filter_map(|c| c.funded).collect::<Vec<_>>(), expected);
                note(&mut members, client, member_state(payload).unwrap(), None);
            }
        }
    }

    #[test]
    fn who_is_left_out_does_not_send_itself_back_in() {
        let client: PublicKey =
            "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798".parse().unwrap();
        let mut members = [member(&client)];
        note(&mut members, &client, MemberState::Accepted, None);
        assert_eq!(members[0].state, MemberState::Accepted);
        note(&mut members, &client, MemberState::Excluded, Some("late".into()));
        note(&mut members, &client, MemberState::Planned, None);
        assert_eq!((members[0].state, members[0].reason.as_deref()), (MemberState::Excluded, Some("late")));
    }
}
