//! What the factory has to say when it is decided what is done with a payment for a client: see
//! [`crate::liquidity::decide`].

use bitcoin::secp256k1::PublicKey;
use factory_core::advance::{leaf_may_change, NewestTree};
use lightning::ln::types::ChannelId;

use super::stored::{Factory, Signed, Stage};
use super::Service;
use crate::error::Error;
use crate::ldk::{channel_id, InstanceId};
use crate::liquidity::decide::Leaf;

/// A client's place in its factory at this moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PaymentView {
    /// The factory.
    pub(crate) instance: Option<InstanceId>,
    /// The client's channel in it, as LDK names it.
    pub(crate) channel: Option<ChannelId>,
    /// Its leaf; what the channel can send is left open.
    pub(crate) leaf: Option<Leaf>,
    /// What publishing all leaves of all factories may cost, sat.
    pub(crate) reserve_sat: u64,
}

impl Service {
    /// A client's place in the newest factory in which it has a channel.
    pub(super) fn payment_view(&self, client: &PublicKey) -> PaymentView {
        let alive: Vec<&Factory> = self
            .factories
            .values()
            .filter(|f| matches!(f.state.stage, Stage::Funded | Stage::Live))
            .collect();
        let needed = alive.iter().map(|f| self.exit_reserve(f).needed_sat);
        let mut view = PaymentView { reserve_sat: needed.fold(0, u64::saturating_add), ..Default::default() };
        let live = alive.into_iter().filter(|f| f.state.stage == Stage::Live);
        let its = live.filter(|f| f.channel_with(client).is_some() && !f.state.left.contains(client));
        let Some(factory) = its.max_by_key(|f| f.expiry_height()) else { return view };
        view.instance = Some(factory.id());
        view.channel = factory.channel_with(client).map(channel_id);
        match self.leaf_for_payment(factory, client) {
            Ok(leaf) => view.leaf = leaf,
            Err(e) => tracing::warn!(%client, error = %e, "leaf of a client that is to be paid"),
        }
        view
    }

    fn leaf_for_payment(&self, factory: &Factory, client: &PublicKey) -> Result<Option<Leaf>, Error> {
        let Signed::Lsp(record) = &factory.signed else { return Ok(None) };
        let (Some(channel), Some(index)) = (factory.channel_with(client), record.index_of(client)) else {
            return Ok(None);
        };
        let Some(leaf) = factory.leaf_of(&channel) else { return Ok(None) };
        let ready = self.parts.factory_messages.ready_peers();
        let mut signers = leaf.channels.iter().filter_map(|(_, client)| *client);
        let tree = NewestTree::new(record, &factory.advances.lsp)?;
        let id = factory.id();
        let rotates =
            self.rotating.iter().any(|((of, _), r)| *of == id && !r.is_complete() && r.moves(leaf.first));
        let height = self.parts.height();
        let may = self.may_advance(factory, std::slice::from_ref(&leaf)).is_ok() && !self.is_closing(factory);
        let (params, position) = (factory.params(), factory.position(leaf.first)?);
        let burnt = factory.advances.marks.burnt.iter().filter(|b| b.instance_id == record.plan.instance_id);
        let tried = burnt.filter(|b| (b.first..b.end).contains(&leaf.first)).map(|b| b.position).max();
        let may_change = leaf_may_change(params, position, tried.unwrap_or(0))?;
        Ok(Some(Leaf {
            limit_msat: 0,
            active: may && height < factory.lifetime()?.active_until(),
            advances_left: if may_change { params.remaining(position)?.leaf() } else { 0 },
            changing: rotates || leaf.channels.iter().any(|(c, _)| self.is_changing(c)),
            signers_online: signers.all(|client| ready.contains(&client)),
            stock_sat: tree.leaf(index)?.stock_sat,
            most_msat: 0,
        }))
    }
}
