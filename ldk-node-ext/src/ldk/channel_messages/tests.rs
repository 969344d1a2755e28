//! Whose channels are a factory's.

use super::*;
use crate::ldk::outpoints::Gate;
use crate::ldk::test_node::{connect, outpoint, TestNode};

const FACTORY: [u8; 32] = [7; 32];

/// A node with two peers. Both have an ordinary channel with it, over the outpoints 1 and 2; the first one has
/// offered the channel that the factory's plan names, under the id 9 and over the outpoint 9.
fn world() -> (TestNode, TestNode, TestNode, msgs::FundingCreated) {
    let [node, client, other] = [(); 3].map(|()| TestNode::new());
    for (peer, n) in [(&client, 1), (&other, 2)] {
        connect(peer, &node);
        peer.open(&node, ChannelId([n; 32]), outpoint(n), false);
    }
    node.outpoints.expect(ChannelId([9; 32]), FACTORY);
    let created = client.offer(&node, ChannelId([9; 32]), outpoint(9), false);
    (node, client, other, created)
}

fn has_channel(node: &TestNode, peer: &TestNode, n: u8) -> bool {
    let id = channel_id(outpoint(n));
    node.manager.list_channels_with_counterparty(&peer.id).iter().any(|c| c.channel_id == id)
}

/// What the node publishes for an ordinary channel goes out.
fn assert_ordinary(node: &TestNode, n: u8) {
    assert_eq!(node.outpoints.gate([&outpoint(n)]), Gate::Foreign, "the channel over {n} is a factory's");
    assert!(!node.outpoints.holds_ready(&channel_id(outpoint(n))));
}

#[test]
fn no_peer_has_another_channel_taken_for_a_factorys() {
    let (node, client, other, created) = world();
    // Another one names the plan's temporary id, and the outpoint of its own ordinary channel.
    let foreign = |n| msgs::FundingCreated { funding_txid: outpoint(n).txid, ..created.clone() };
    node.messages.handle_funding_created(other.id, &foreign(2));
    assert_ordinary(&node, 2);
    // Nobody may, the client neither. Not to LDK: it would give the channel up that is named.
    for (peer, n) in [(&other, 2), (&client, 1), (&client, 2), (&other, 1)] {
        let id = channel_id(outpoint(n));
        assert!(!node.messages.may_fund(&peer.id, &foreign(n), &id), "{n}");
    }
    // Who has the factory's channel is not disturbed by it.
    node.messages.handle_funding_created(client.id, &created);
    assert_eq!(node.outpoints.gate([&outpoint(9)]), Gate::Held(FACTORY));
    assert!(node.outpoints.holds_ready(&channel_id(outpoint(9))) && has_channel(&node, &client, 9));
    [1, 2].iter().for_each(|n| assert_ordinary(&node, *n));
}

/// A provider opens its channels itself: the id that its plan names is its own.
#[test]
fn nobody_funds_a_channel_that_we_open() {
    let (node, client, other, created) = world();
    node.outpoints.expect(ChannelId([8; 32]), FACTORY);
    node.manager.create_channel(client.id, 50_000, 0, 1, Some(ChannelId([8; 32])), None).unwrap();
    for (peer, n) in [(&client, 1), (&other, 2)] {
        let temporary_channel_id = ChannelId([8; 32]);
        let msg =
            msgs::FundingCreated { funding_txid: outpoint(n).txid, temporary_channel_id, ..created.clone() };
        node.messages.handle_funding_created(peer.id, &msg);
        assert_ordinary(&node, n);
    }
}

#[test]
fn a_factorys_outpoint_stays_with_its_channel() {
    let (node, client, _, created) = world();
    node.messages.handle_funding_created(client.id, &created);
    let before = node.outpoints.get(&channel_id(outpoint(9))).unwrap();
    // Others name it for a channel of their own: an ordinary one, and one of another plan.
    for (temporary, instance) in [(3, None), (4, Some([8; 32]))] {
        if let Some(instance) = instance {
            node.outpoints.expect(ChannelId([temporary; 32]), instance);
        }
        let other = TestNode::new();
        connect(&other, &node);
        let again = other.offer(&node, ChannelId([temporary; 32]), outpoint(9), false);
        node.messages.handle_funding_created(other.id, &again);
        assert_eq!(node.outpoints.get(&channel_id(outpoint(9))), Some(before));
        assert!(has_channel(&node, &client, 9) && !has_channel(&node, &other, 9), "{temporary}");
    }
}

#[test]
fn what_ldk_refuses_is_no_factory_channel() {
    let (node, client, _, created) = world();
    // A signature for another outpoint.
    let wrong = msgs::FundingCreated { funding_txid: outpoint(5).txid, ..created };
    node.messages.handle_funding_created(client.id, &wrong);
    assert!(!has_channel(&node, &client, 5));
    assert_ordinary(&node, 5);
}
