//! From an operator's request to what the ceremony starts from.

use std::collections::HashSet;

use bitcoin::secp256k1::PublicKey;
use bitcoin::Network;
use factory_core::ceremony::{InvitedClient, ParamsChoice};
use factory_core::params::{DwLayer, Params};

use super::Service;
use crate::api::{CreateFactoryRequest, FactoryClientRequest, ParamsOverride};
use crate::config::{LspSettings, RoleConfig};
use crate::error::Error;
use crate::node::parse_node_id;
use crate::util::unix_now;

/// Dust limit of P2WSH and P2TR outputs, sat.
const DUST_SAT: u64 = 330;
/// Smallest channel of a factory: four times the least reserve, sat.
const MIN_CHANNEL_SAT: u64 = 4 * MIN_RESERVE_SAT;
/// Least reserve that each side of a channel keeps (LDK), sat.
const MIN_RESERVE_SAT: u64 = 1_000;

/// A request that has been checked.
pub(super) struct Order {
    pub(super) clients: Vec<InvitedClient>,
    pub(super) params: ParamsChoice,
    pub(super) stock_sat: u64,
}

impl Service {
    pub(super) fn lsp_settings(&self) -> Result<&LspSettings, Error> {
        match &self.parts.config.role {
            RoleConfig::Lsp(s) => Ok(s),
            RoleConfig::Client(_) => Err(Error::Conflict("only an LSP can do this".into())),
        }
    }

    /// Checks a request and fills in the defaults.
    pub(super) fn order(&self, request: CreateFactoryRequest) -> Result<Order, Error> {
        let settings = self.lsp_settings()?;
        let wanted = self.wanted_clients(&request)?;
        let mut seen = HashSet::new();
        let mut clients = Vec::with_capacity(wanted.len());
        for c in wanted {
            let node_id = parse_node_id(&c.node_id)?;
            if !seen.insert(node_id) {
                return Err(Error::invalid("clients", format!("{node_id} is named twice")));
            }
            self.admission.check(&node_id, self.parts.height())?;
            if !self.parts.factory_messages.ready_peers().contains(&node_id) {
                return Err(Error::Unavailable(format!("client {node_id} is not connected")));
            }
            if c.capacity_sat < MIN_CHANNEL_SAT {
                return Err(Error::invalid("capacity_sat", format!("must be at least {MIN_CHANNEL_SAT}")));
            }
            if let Some(w) = self.waiting.get(&node_id) {
                if c.capacity_sat < w.min_capacity_sat || c.capacity_sat > w.max_capacity_sat {
                    let text =
                        format!("{node_id} accepts {} to {} sat", w.min_capacity_sat, w.max_capacity_sat);
                    return Err(Error::invalid("capacity_sat", text));
                }
            }
            // The LSP keeps its reserve in the channel: 1 %, at least 1000 sat.
            let most = c.capacity_sat.saturating_sub((c.capacity_sat / 100).max(MIN_RESERVE_SAT));
            if c.push_sat > most {
                let text = format!("must be at most {most}: capacity_sat less the LSP's reserve of 1 %");
                return Err(Error::invalid("push_sat", text));
            }
            let push_msat =
                c.push_sat.checked_mul(1000).ok_or_else(|| Error::invalid("push_sat", "is too large"))?;
            clients.push(InvitedClient { node_id, capacity_sat: c.capacity_sat, push_msat });
        }
        let least = settings.min_clients;
        if clients.len() < least {
            let what = if request.all { "wait" } else { "are named" };
            let text = format!("{} {what}, at least {least} are needed", clients.len());
            return Err(Error::invalid("clients", text));
        }
        let stock_sat = request.stock_sat.unwrap_or(settings.default_stock_sat);
        if stock_sat != 0 && stock_sat < DUST_SAT {
            return Err(Error::invalid("stock_sat", format!("must be 0 or at least {DUST_SAT} (dust)")));
        }
        let network = self.parts.config.network;
        let params = params(network, request.params.unwrap_or_default(), clients.len())?;
        let shape = match &params {
            ParamsChoice::Fixed(p) | ParamsChoice::Reshape(p) => &p.shape,
        };
        let leaves = u64::try_from(shape.leaves(clients.len())).unwrap_or(u64::MAX);
        let stock = stock_sat.saturating_mul(leaves);
        let locked: u64 = clients.iter().map(|c| c.capacity_sat).fold(stock, u64::saturating_add);
        let onchain = self.parts.wallet.balance();
        let available_sat = onchain.confirmed_sat.saturating_sub(onchain.reserved_sat);
        if available_sat < locked {
            return Err(Error::InsufficientFunds { needed_sat: locked, available_sat });
        }
        Ok(Order { clients, params, stock_sat })
    }

    fn wanted_clients(&self, request: &CreateFactoryRequest) -> Result<Vec<FactoryClientRequest>, Error> {
        match (request.all, request.clients.is_empty()) {
            (true, false) => Err(Error::invalid("clients", "give either clients or all, not both")),
            (false, true) => Err(Error::invalid("clients", "give clients, or all with capacity_sat")),
            (false, false) => Ok(request.clients.clone()),
            (true, true) => {
                let capacity_sat = request
                    .capacity_sat
                    .ok_or_else(|| Error::invalid("capacity_sat", "is needed with all"))?;
                let mut ids: Vec<PublicKey> = self.waiting_now();
                ids.sort();
                Ok(ids
                    .into_iter()
                    .map(|id| FactoryClientRequest {
                        node_id: id.to_string(),
                        capacity_sat,
                        push_sat: request.push_sat.unwrap_or(0),
                    })
                    .collect())
            }
        }
    }

    /// Clients that asked to be in a factory, are connected, are in none that is alive, and are not paused.
    pub(super) fn waiting_now(&self) -> Vec<PublicKey> {
        let ready = self.parts.factory_messages.ready_peers();
        self.waiting.keys().filter(|id| ready.contains(id) && self.is_free(id)).copied().collect()
    }
}

/// What an operator wishes over the planner's defaults for so many clients.
pub(crate) fn params(network: Network, wish: ParamsOverride, clients: usize) -> Result<ParamsChoice, Error> {
    let mut params = match wish.clients_per_leaf {
        Some(k) => Params::default_with(clients, k, network),
        None => Params::default_for(clients, network),
    }
    .map_err(bad_params)?;
    let fixed = wish.arity.is_some();
    if let Some(arity) = wish.arity {
        params.shape.layers =
            std::iter::repeat_n(Vec::new(), arity.len()).chain(params.shape.layers.pop()).collect();
        params.shape.arity = arity;
    }
    let shaped = wish.layers.is_some();
    if let Some(layers) = wish.layers {
        params.shape.layers = layers
            .into_iter()
            .map(|level| {
                level.into_iter().map(|[states, step, base]| DwLayer { states, step, base }).collect()
            })
            .collect();
    }
    params.active = wish.active.unwrap_or(params.active);
    params.dying = wish.dying.unwrap_or(params.dying);
    params.margin = wish.margin.unwrap_or(params.margin);
    params.min_depth = wish.min_depth.unwrap_or(params.min_depth);
    params.validate(clients).map_err(bad_params)?;
    // A shape somebody chose stays as it is; a default one follows the number of clients.
    let upper = params.shape.layers.iter().rev().skip(1).any(|l| !l.is_empty());
    Ok(if fixed || (shaped && upper) { ParamsChoice::Fixed(params) } else { ParamsChoice::Reshape(params) })
}

fn bad_params(e: factory_core::Error) -> Error {
    Error::invalid("params", e.to_string())
}

/// A new instance id: random, with the time in front so that lists sort by age.
pub(super) fn new_instance_id() -> [u8; 32] {
    let mut id: [u8; 32] = rand::random();
    for (slot, byte) in id.iter_mut().zip(unix_now().to_be_bytes()) {
        *slot = byte;
    }
    id
}
