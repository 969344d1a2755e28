//! Switches that leave out one protection each. A test or scenario that guards it has to notice; `make checks` runs
//! them all and says which did not (`integration/src/checks`).

/// Name of the switch, the invariant of the design that stands without protection then, and what is left out.
pub const PROTECTIONS: &[(&str, u8, &str)] = &[
    // What a client checks before it signs a tree.
    ("client.plan.network", 1, "a plan is for the client's own chain"),
    ("client.plan.params", 7, "the protocol's rules for parameters, at the client"),
    ("client.plan.channel_id", 4, "every attempt has a channel of its own"),
    ("client.plan.stock", 1, "a leaf's stock is a valid output"),
    ("client.plan.own_key", 1, "a client's own key stands at its index, once"),
    ("client.plan.keys", 1, "no key stands twice in a plan"),
    ("client.plan.lsp_key", 1, "the LSP's key is the same in all attempts"),
    ("client.plan.policy", 7, "a client's own limits for a plan"),
    ("client.plan.lifetime", 7, "T covers life and worst exit, at the client"),
    ("client.path.child_key", 1, "a node pays the aggregate of the signers of the next one"),
    ("client.path.amounts", 1, "a node gets from its parent what it spends"),
    ("client.path.siblings", 1, "siblings are P2TR and above dust"),
    ("client.path.funding_value", 1, "the funding output is worth what the root spends"),
    ("client.path.funding_reused", 2, "one tree is signed for a funding output"),
    ("client.channel.script", 1, "the leaf pays the script of the client's own channel"),
    ("client.channel.outpoint", 1, "the channel is over the output that the path leads to"),
    ("client.channel.capacity", 1, "the channel has the planned capacity"),
    ("client.channel.any", 13, "a client accepts the channels of its plan only"),
    // What a tree is made of.
    ("keys.script_path", 1, "an output key has no script path"),
    ("keys.client_left_out", 1, "a node's key is that of all clients below and the LSP"),
    ("distribution.to_lsp", 15, "a distribution pays the clients"),
    ("lifetime.worst_exit", 7, "the worst exit counts the delay of the commitment"),
    // What the LSP checks of a client.
    ("lsp.accept.key", 1, "no client takes the key of somebody else"),
    ("lsp.accept.script", 15, "a client's payout script is a standard one"),
    ("lsp.partials.unchecked", 2, "a client's partial signatures parse"),
    // Nonces.
    ("nonce.fixed", 4, "every nonce is drawn afresh"),
    ("client.nonces.twice", 4, "a second set of aggregate nonces is refused"),
    ("client.close.nonce_twice", 4, "a second aggregate nonce of a close is refused"),
    // Before the funding transaction leaves.
    ("client.signatures.unchecked", 2, "a client verifies every signature of its path"),
    ("client.persisted.early", 2, "a client says that its exit is stored when it is"),
    ("client.path.unstored", 2, "a client stores its path"),
    ("client.superseded.dropped", 9, "a client keeps a complete exit whose attempt was given up"),
    ("lsp.signatures.unchecked", 2, "the LSP verifies every signature"),
    ("lsp.signatures.early", 10, "the LSP stores the tree before it sends signatures"),
    ("lsp.funding.early", 2, "the LSP waits until every client has stored its exit"),
    ("lsp.funding.uncommitted", 2, "the LSP waits until it holds every first commitment"),
    ("lsp.funding.unstored", 10, "the LSP stores the funding transaction before it shows it"),
    ("lsp.funding.any_txid", 16, "the LSP compares the txid after signing"),
    ("wallet.unconfirmed_coins", 16, "a funding transaction spends confirmed coins only"),
    ("wallet.changes_txid", 16, "a wallet signs the transaction that it was given"),
    // Payments.
    ("ready.not_held", 13, "channel_ready is held until the funding is deep"),
    ("factory.any_depth", 13, "a factory goes live when its funding is deep enough"),
    ("node.depth.ignored", 13, "payments stop while a reorganisation has made the funding too shallow"),
    ("htlc.expiry", 6, "an HTLC expires late enough for an exit"),
    ("htlc.delta", 6, "incoming and outgoing expiry are far enough apart for an exit"),
    ("htlc.no_alarm", 6, "an exit starts in time for an HTLC"),
    ("htlc.held_forgotten", 6, "an HTLC that was claimed counts until our own commitment is rid of it"),
    ("holds.unstored", 10, "an order for a held payment is stored before it is carried out"),
    (
        "holds.late_given_up",
        10,
        "an order that came in time is carried out late where the leaf is on the chain",
    ),
    ("node.monitor.first_write", 10, "a channel goes on after a crash once its first monitor is stored"),
    // What LDK publishes.
    ("gate.open", 10, "a commitment waits for its leaf"),
    ("closing.sent", 14, "LDK's closing transaction of a factory channel is kept"),
    // Close.
    ("client.close.pending", 14, "no close with payments pending, at the client"),
    ("client.close.keys", 14, "a close is signed by the keys of the funding output"),
    ("client.close.form", 14, "a close is of the agreed form"),
    ("client.close.amount", 14, "a close pays the client its balance"),
    ("client.close.partial_early", 14, "a partial signature of a close waits for the disk"),
    ("client.close.thawed", 14, "a channel stays frozen once a partial signature may be out"),
    ("lsp.close.balances", 14, "the final balances of a channel add up to its capacity"),
    // The chain.
    ("index.any_funding", 9, "a confirmed transaction is looked at, not its txid alone"),
    ("index.reorg_kept", 9, "what a reorganisation takes off the chain is not confirmed any more"),
    ("client.given_up.unwatched", 9, "a client watches a factory that it has given up"),
    // Exits.
    ("publish.child_unstored", 10, "a child is stored before it is sent"),
    ("exit.overtaken_kept", 10, "a step that was overtaken gives its coin back"),
    ("exit.no_budget", 10, "the budget of an exit is kept"),
    ("guard.absent", 15, "who has a leaf guards it when somebody begins to publish it"),
    ("guard.no_hurry", 15, "a state with an older rival goes out at once"),
    ("guard.no_distribution", 15, "a guard publishes the distribution after T"),
    ("client.no_expiry", 15, "a client begins its distribution at T"),
    ("lsp.no_settlement", 15, "the LSP settles before T"),
    ("lsp.settled_leaf.left_open", 15, "the LSP closes what is open on a leaf that is on the chain"),
    // The watcher.
    ("watch.signatures", 17, "a watcher verifies the signatures of a file"),
    ("watch.distributions", 17, "a watcher looks whom a file's distributions pay"),
];
