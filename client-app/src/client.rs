//! The running client.

use std::path::Path;
use std::time::Duration;

use ldk_node_ext::api::{
    Balance, ChannelInfo, ClaimRequest, Deadline, EventRecord, ExitRequest, FactoryInfo, FailRequest,
    Invoice, InvoiceRequest, JitMoveRequest, JitMoved, LiquidityAnswer, LiquidityRequest, NodeInfo, Offer,
    OfferRequest, PayRequest, Payment,
};
use ldk_node_ext::watch::ExitFile;
use ldk_node_ext::{Node, NodeConfig};

use crate::{Error, FactoryClientBuilder};

/// How long one look for an event waits; then the store is asked again.
const EVENT_WAIT: Duration = Duration::from_secs(60);

/// A running wallet; cheap to clone, all clones are the same wallet.
///
/// It runs on the tokio runtime on which it was started, until [`stop`](Self::stop).
#[derive(Clone)]
pub struct FactoryClient {
    node: Node,
}

impl FactoryClient {
    /// Sets up a client.
    pub fn builder() -> FactoryClientBuilder {
        FactoryClientBuilder::default()
    }

    /// Makes the data directory and a new seed in it. Once per wallet; back the seed up.
    ///
    /// # Errors
    /// [`Error::Node`] of kind `Conflict` if there is a seed already; it is never overwritten.
    pub fn init(data_dir: impl AsRef<Path>) -> Result<(), Error> {
        Ok(ldk_node_ext::init_seed(data_dir.as_ref())?)
    }

    /// Starts a client from a configuration.
    ///
    /// # Errors
    /// [`Error::Node`]: no seed, a store that cannot be read, bitcoind not there.
    pub async fn start(config: NodeConfig) -> Result<Self, Error> {
        Ok(Self { node: Node::start(config).await? })
    }

    /// Stores everything and ends. Returns when all is done.
    ///
    /// # Errors
    /// [`Error::Node`] if something could not be stored.
    pub async fn stop(&self) -> Result<(), Error> {
        Ok(self.node.stop().await?)
    }

    /// Resolves when the client has ended: by [`stop`](Self::stop) or by a fault.
    pub async fn stopped(&self) {
        self.node.stopped().await;
    }

    /// Node id, chain, peers, deadline.
    pub fn info(&self) -> NodeInfo {
        self.node.info()
    }

    /// The nearest moment at which something has to have happened, over all factories: when to wake
    /// the app, at the latest.
    pub fn next_deadline(&self) -> Option<Deadline> {
        self.node.info().deadline
    }

    /// Money on chain and in channels.
    ///
    /// # Errors
    /// [`Error::Node`].
    pub fn balance(&self) -> Result<Balance, Error> {
        Ok(self.node.balance()?)
    }

    /// A new on-chain address.
    ///
    /// # Errors
    /// [`Error::Node`].
    pub fn new_address(&self) -> Result<String, Error> {
        Ok(self.node.new_address()?)
    }

    /// Channels with their balances.
    pub fn channels(&self) -> Vec<ChannelInfo> {
        self.node.channels()
    }

    /// Asks the LSP to change the capacity of the channel in a factory by so many sat of inbound liquidity; negative to
    /// give some back. The event `factory_rotated` says that it has, `liquidity_declined` or `rotation_failed` that it
    /// will not.
    ///
    /// # Errors
    /// [`Error::Node`] if the LSP is not connected or nothing can change now.
    pub async fn change_liquidity(
        &self,
        instance_id: &str,
        change_sat: i64,
    ) -> Result<LiquidityAnswer, Error> {
        let request = LiquidityRequest { change_sat, ..LiquidityRequest::default() };
        Ok(self.node.change_liquidity(instance_id, request).await?)
    }

    /// Makes an invoice; for more than each channel can receive, but not than all together, it has the LSP receive
    /// it, unless the request says otherwise.
    ///
    /// # Errors
    /// [`Error::Node`] naming the field that is wrong, or if the LSP is needed and not there, or declines.
    pub async fn create_invoice(&self, request: InvoiceRequest) -> Result<Invoice, Error> {
        Ok(self.node.create_invoice(request).await?)
    }

    /// Makes an offer (BOLT 12), which can be paid any number of times. It leads through the LSP, and who pays it gets
    /// a path for each channel: over several of them at once if need be.
    ///
    /// # Errors
    /// [`Error::Node`] naming the field that is wrong, or if the LSP is not connected.
    pub fn create_offer(&self, request: OfferRequest) -> Result<Offer, Error> {
        Ok(self.node.create_offer(request)?)
    }

    /// Pays an invoice, or to an offer, and waits for the outcome as long as the request says; look at the status.
    /// Dropping the future does not take the payment back.
    ///
    /// # Errors
    /// [`Error::Node`] if the payment was not even begun.
    pub async fn pay(&self, request: PayRequest) -> Result<Payment, Error> {
        Ok(self.node.pay(request).await?)
    }

    /// Moves the money of a channel that the LSP opened beside the factory into the factory, and closes that channel.
    ///
    /// # Errors
    /// [`Error::Node`] with the reason if nothing was moved.
    pub async fn move_in(&self, request: JitMoveRequest) -> Result<JitMoved, Error> {
        Ok(self.node.move_in(request).await?)
    }

    /// Claims the payment that a hold invoice received; the event `payment_received` says when the money
    /// is there.
    ///
    /// # Errors
    /// [`Error::Node`] of kind `InvalidArgument`, `NotFound`, or `Conflict` if nothing is held or it is too
    /// late.
    pub fn claim_payment(&self, request: &ClaimRequest) -> Result<Payment, Error> {
        Ok(self.node.claim_payment(request)?)
    }

    /// Gives the payment back that a hold invoice received.
    ///
    /// # Errors
    /// [`Error::Node`] of kind `InvalidArgument`, `NotFound`, or `Conflict` if nothing is held.
    pub fn fail_payment(&self, request: &FailRequest) -> Result<Payment, Error> {
        Ok(self.node.fail_payment(request)?)
    }

    /// All payments, in and out.
    ///
    /// # Errors
    /// [`Error::Node`].
    pub fn payments(&self) -> Result<Vec<Payment>, Error> {
        Ok(self.node.payments()?)
    }

    /// One payment by its hash in hex.
    ///
    /// # Errors
    /// [`Error::Node`] of kind `NotFound` or `InvalidArgument`.
    pub fn payment(&self, payment_hash: &str) -> Result<Payment, Error> {
        Ok(self.node.payment(payment_hash)?)
    }

    /// This client's factories, each with its own path of the tree.
    ///
    /// # Errors
    /// [`Error::Node`].
    pub async fn factories(&self) -> Result<Vec<FactoryInfo>, Error> {
        Ok(self.node.factories().await?)
    }

    /// One factory by its instance id in hex.
    ///
    /// # Errors
    /// [`Error::Node`] of kind `NotFound` or `InvalidArgument`.
    pub async fn factory(&self, instance_id: &str) -> Result<FactoryInfo, Error> {
        Ok(self.node.factory(instance_id).await?)
    }

    /// Starts to leave a factory without anybody's help; [`factory`](Self::factory) shows how far it
    /// is. It takes a confirmed coin in the wallet for the fees.
    ///
    /// # Errors
    /// [`Error::Node`].
    pub async fn exit_factory(&self, instance_id: &str, max_fee_sat: Option<u64>) -> Result<(), Error> {
        let request = ExitRequest { client: None, max_fee_sat };
        Ok(self.node.exit_factory(instance_id, request).await?)
    }

    /// What a watcher needs to guard the own leaf of a factory; it holds no secret.
    ///
    /// # Errors
    /// [`Error::Node`] of kind `NotFound`, or `Conflict` if the factory is not alive.
    pub async fn export_exit(&self, instance_id: &str) -> Result<ExitFile, Error> {
        Ok(self.node.export_exit(instance_id).await?)
    }

    /// Asks the LSP to close a factory by agreement of all.
    ///
    /// # Errors
    /// [`Error::Node`].
    pub async fn close_factory(&self, instance_id: &str) -> Result<(), Error> {
        Ok(self.node.close_factory(instance_id).await?)
    }

    /// The first event with an index above `after`; waits for it if there is none. None once the
    /// client has ended. Events are kept on disk: who remembers the last index misses nothing.
    ///
    /// # Errors
    /// [`Error::Node`].
    pub async fn next_event(&self, after: u64) -> Result<Option<EventRecord>, Error> {
        loop {
            if let Some(event) = self.node.events(after, 1)?.into_iter().next() {
                return Ok(Some(event));
            }
            tokio::select! {
                biased;
                () = self.node.wait_event(after, EVENT_WAIT) => {}
                () = self.node.stopped() => return Ok(None),
            }
        }
    }
}
