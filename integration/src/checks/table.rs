//! Which test guards which protection, and what it says when the protection is missing.

use super::Check;

/// A test in one process.
pub(super) const fn test(
    switch: &'static str,
    program: &'static str,
    test: &'static str,
    says: &'static str,
) -> Check {
    Check { switch, armed: &[], program, test, crash: "", says }
}

/// A scenario, with the switch on in the processes `armed`.
const fn scenario(
    switch: &'static str,
    armed: &'static [&'static str],
    program: &'static str,
    test: &'static str,
    says: &'static str,
) -> Check {
    Check { switch, armed, program, test, crash: "", says }
}

/// The rows of the crash matrix with this in the fail point's name.
const fn crash(
    switch: &'static str,
    armed: &'static [&'static str],
    crash: &'static str,
    says: &'static str,
) -> Check {
    Check { switch, armed, program: "scenario_crash", test: "a_crash_at_every_step", crash, says }
}

const BAD_PLANS: &str = "plans_that_break_one_rule";
const BAD_PATHS: &str = "paths_that_break_one_rule";
const BAD_CHANNELS: &str = "channels_that_are_not_the_planned_ones";
const BAD_CLIENTS: &str = "faulty_clients_are_named_and_excluded";
const BAD_CLOSES: &str = "a_cheating_provider_is_refused";
const RANDOM: &str = "ldk::virt::tests::random::every_own_commitment_is_valid_on_every_outpoint_that_counts";
const WRONG_COMPANION: &str = "ldk::virt::tests::a_wrong_companion_is_refused_and_nothing_is_revoked";
const OWN_ON_REAL: &str =
    "ldk::virt::on_chain::claims::our_own_commitment_leaves_on_the_outpoint_that_is_confirmed";
const REVOKED_ON_REAL: &str =
    "ldk::virt::on_chain::claims::a_revoked_commitment_is_punished_on_every_outpoint";
const REVOKED_ON_RETIRED: &str =
    "ldk::virt::on_chain::retired::a_revoked_commitment_on_a_retired_outpoint_is_punished";
const NO_LSP_MONEY: &str = "no_output_with_client_money_is_the_providers_alone";
const STAKES: &str = "ldk::gossip::tests::gossip_of_who_has_nothing_at_stake_does_not_count";
const TOO_SHALLOW: &str = "no_payment_passes_before_the_funding_is_deep_enough";

/// All checks.
pub const TABLE: &[Check] = &[
    test("client.plan.network", "cheats", BAD_PLANS, "Some(Network)"),
    test("client.plan.params", "cheats", BAD_PLANS, "zero step"),
    test("client.plan.stock", "cheats", BAD_PLANS, "dust stock"),
    test("client.plan.channel_id", "cheats", "attempts_that_change_what_has_to_stay", "Some(ChannelId)"),
    test("lsp.accept.key", "ceremony", BAD_CLIENTS, "takes the provider's key"),
    test("lsp.accept.script", "ceremony", BAD_CLIENTS, "gives an odd payout script"),
    test("lsp.partials.unchecked", "ceremony", BAD_CLIENTS, "sends a partial above the group order"),
    test("client.plan.own_key", "cheats", BAD_PLANS, "another's index"),
    test("client.plan.keys", "cheats", BAD_PLANS, "a key twice"),
    test("client.plan.lsp_key", "cheats", "attempts_that_change_what_has_to_stay", "Some(LspKey)"),
    test("client.plan.policy", "cheats", "plans_that_break_the_clients_policy", "Some(TooManyClients)"),
    test("client.plan.policy", "cheats", BAD_PLANS, "born long ago"),
    test("client.plan.lifetime", "cheats", BAD_PLANS, "expiry one block early"),
    test("client.path.child_key", "cheats", BAD_PATHS, "own child paid to a sibling"),
    test("client.path.amounts", "cheats", BAD_PATHS, "own child one sat short"),
    test("client.path.siblings", "cheats", BAD_PATHS, "sibling below dust"),
    test("client.path.funding_value", "cheats", BAD_PATHS, "funding one sat short"),
    test(
        "client.path.funding_reused",
        "cheats",
        "a_funding_output_is_signed_for_once",
        "Some(FundingReused)",
    ),
    test("client.channel.script", "cheats", BAD_CHANNELS, "Some(ChannelScript)"),
    test("client.channel.outpoint", "cheats", BAD_CHANNELS, "Some(ChannelOutpoint)"),
    test("client.channel.capacity", "cheats", BAD_CHANNELS, "Some(ChannelCapacity)"),
    test("keys.script_path", "tree", NO_LSP_MONEY, "a script path"),
    test("keys.client_left_out", "tree", NO_LSP_MONEY, "the signers of a node"),
    test("distribution.to_lsp", "tree", NO_LSP_MONEY, "a distribution pays somebody else"),
    test(
        "lifetime.worst_exit",
        "planner_lifetime",
        "an_expiry_that_misses_any_part_is_refused",
        "to_self_delay",
    ),
    test("nonce.fixed", "ceremony", "restarts_use_fresh_nonces_and_channels", "a nonce was used twice"),
    test("nonce.fixed", "promises", "the_provider_draws_fresh_nonces", "the provider's nonce was used twice"),
    test("client.nonces.twice", "cheats", "nonces_and_signatures", "nonces twice"),
    test("client.close.nonce_twice", "close", "an_aggregate_nonce_is_used_once", "NonceReuse"),
    test(
        "client.signatures.unchecked",
        "cheats",
        "nonces_and_signatures",
        "a client stored an exit that is not signed",
    ),
    test("lsp.signatures.unchecked", "ceremony", BAD_CLIENTS, "sends a wrong partial"),
    test("client.persisted.early", "promises", "persisted_means_on_disk", "said before it was on disk"),
    test(
        "lsp.signatures.early",
        "promises",
        "signatures_wait_for_the_record",
        "sent before the tree was on disk",
    ),
    test(
        "lsp.funding.early",
        "ceremony",
        "honest_factories_of_many_shapes",
        "before a client had stored its exit",
    ),
    test("lsp.funding.early", "promises", "persisted_means_on_disk", "before a client had stored its exit"),
    test(
        "lsp.funding.uncommitted",
        "promises",
        "the_funding_waits_for_the_first_commitments",
        "without a first commitment",
    ),
    test(
        "client.superseded.dropped",
        "ceremony",
        "a_complete_exit_outlives_its_attempt",
        "a complete exit was thrown away",
    ),
    test("client.close.pending", "close", "a_refusal_or_silence_changes_nothing", "(1, PendingPayments)"),
    test("client.close.keys", "close", BAD_CLOSES, "(0, CloseKeys)"),
    test("client.close.form", "close", BAD_CLOSES, "(0, CloseForm)"),
    test("client.close.amount", "close", BAD_CLOSES, "(0, CloseAmount)"),
    test(
        "client.close.partial_early",
        "close",
        "partials_wait_for_the_disk",
        "a partial left before the disk",
    ),
    test("client.close.thawed", "close", "restarts_resume", "client_state.frozen"),
    test("lsp.close.balances", "close", "balances_that_do_not_add_up_are_a_problem", "no problem was told"),
    test(
        "guard.no_hurry",
        "guard",
        "a_state_with_an_older_rival_goes_out_at_once",
        "RelativeDelay { step: 3 }",
    ),
    test("guard.no_distribution", "guard", "a_leaf_that_nobody_touches_is_left_alone", "PublishDistribution"),
    test(
        "wallet.unconfirmed_coins",
        "ldk_node_ext",
        "wallet::tests::a_payment_spends_confirmed_coins_only",
        "an unconfirmed coin was spent",
    ),
    test("companion.not_awaited", "ldk_node_ext", RANDOM, "an own commitment without a companion"),
    test(
        "companion.not_stored",
        "ldk_node_ext",
        "ldk::virt::tests::outpoints_are_covered_and_stay_so_through_payments_and_restarts",
        "our newest commitment is on disk",
    ),
    test("companion.secret_not_held", "ldk_node_ext", WRONG_COMPANION, "revoked on a wrong companion"),
    test("companion.unchecked", "ldk_node_ext", WRONG_COMPANION, "a wrong companion was taken"),
    test(
        "marker.newest_only",
        "ldk_node_ext",
        "ldk::virt::tests::a_marker_comes_with_every_commitment_that_is_not_revoked",
        "both commitments",
    ),
    test("marker.newest_suffices", "ldk_node_ext", RANDOM, "an own commitment without a companion"),
    test("virt.creation.unseen", "ldk_node_ext", OWN_ON_REAL, "nothing leaves though a leaf is confirmed"),
    test("virt.spend.unseen", "ldk_node_ext", REVOKED_ON_REAL, "right: 1000000"),
    test(
        "virt.reorg.kept",
        "ldk_node_ext",
        "ldk::virt::on_chain::claims::a_reorganisation_to_another_leaf_state_is_followed",
        "no leaf is confirmed any more",
    ),
    test("virt.sign.v_form", "ldk_node_ext", REVOKED_ON_REAL, "input 0 of"),
    test("virt.bump.v_form", "ldk_node_ext", OWN_ON_REAL, "on what is confirmed"),
    test("virt.sweep.v_form", "ldk_node_ext", OWN_ON_REAL, "which is not there"),
    test(
        "virt.retired.sent",
        "ldk_node_ext",
        "ldk::virt::on_chain::retired::a_commitment_of_ours_on_a_retired_outpoint_never_leaves",
        "on a retired outpoint",
    ),
    test("virt.retired.none", "ldk_node_ext", REVOKED_ON_RETIRED, "no monitor was kept for the V before"),
    test("virt.retired.ignorant", "ldk_node_ext", REVOKED_ON_RETIRED, "revoked after the lock true"),
    test(
        "virt.retired.awake",
        "ldk_node_ext",
        "ldk::virt::on_chain::retired::a_retired_monitor_sleeps_until_its_outpoint_is_spent",
        "closed by the copy",
    ),
    test(
        "virt.splice.sent",
        "ldk_node_ext",
        "ldk::virt::on_chain::retired::our_own_commitment_leaves_after_a_splice",
        "nothing leaves though a leaf is confirmed",
    ),
    test("htlc.expiry", "ldk_node_ext", "htlc_rules::tests::one_block_decides", "ExpiresTooSoon"),
    test("htlc.delta", "ldk_node_ext", "htlc_rules::tests::one_block_decides", "DeltaTooSmall"),
    test(
        "htlc.no_alarm",
        "ldk_node_ext",
        "htlc_rules::tests::an_alarm_waits_for_the_peer_and_ends_with_its_htlc",
        "kind: Claimed",
    ),
    test(
        "htlc.held_forgotten",
        "ldk_node_ext",
        "ldk::signer::tests::a_claimed_htlc_is_held_until_our_own_commitment_is_rid_of_it",
        "inbound and claimed alone",
    ),
    test(
        "ready.not_held",
        "ldk_node_ext",
        "ldk::outpoints::tests::nothing_leaves_before_its_leaf_is_confirmed",
        "index.holds_ready(&id)",
    ),
    test(
        "gate.open",
        "ldk_node_ext",
        "ldk::outpoints::tests::nothing_leaves_before_its_leaf_is_confirmed",
        "right: Held",
    ),
    test(
        "gate.open",
        "ldk_node_ext",
        "ldk::broadcaster::tests::a_held_commitment_and_a_closing_transaction_stay_here",
        "queue.try_recv().is_err()",
    ),
    test(
        "closing.sent",
        "ldk_node_ext",
        "ldk::broadcaster::tests::a_held_commitment_and_a_closing_transaction_stay_here",
        "never broadcast by LDK",
    ),
    test(
        "closing.written_once",
        "ldk_node_ext",
        "ldk::broadcaster::tests::a_closing_transaction_that_cannot_be_written_is_not_lost",
        "the only copy is lost",
    ),
    test(
        "closing.unwritten",
        "ldk_node_ext",
        "node::room::tests::the_manager_waits_for_the_closing_transactions",
        "the manager was written without its closing transaction",
    ),
    test(
        "gate.foreign_funding",
        "ldk_node_ext",
        "ldk::channel_messages::tests::no_peer_has_another_channel_taken_for_a_factorys",
        "the channel over 2 is a factory's",
    ),
    test(
        "gate.foreign_funding",
        "ldk_node_ext",
        "ldk::channel_messages::tests::nobody_funds_a_channel_that_we_open",
        "the channel over 1 is a factory's",
    ),
    test(
        "gate.refused_funding",
        "ldk_node_ext",
        "ldk::channel_messages::tests::what_ldk_refuses_is_no_factory_channel",
        "the channel over 5 is a factory's",
    ),
    test(
        "net.judges_everybody",
        "ldk_node_ext",
        "node::connections::tests::nobody_is_looked_up_for_connections_without_a_name",
        "peers looked up for connections that say nothing",
    ),
    test("gossip.from_anybody", "ldk_node_ext", STAKES, "the gossip of a stranger counts"),
    test("gossip.from_any_channel", "ldk_node_ext", STAKES, "the gossip of any channel counts"),
    test(
        "gossip.unbounded",
        "ldk_node_ext",
        "ldk::gossip::tests::the_graph_is_bounded",
        "more channels than the graph may have",
    ),
    test(
        "lsp.lists_every_channel",
        "ldk_node_ext",
        "factory::creating::tests::ldk_lists_one_clients_channels_a_message",
        "listings of channels",
    ),
    test(
        "index.any_funding",
        "ldk_node_ext",
        "chain::index::tests::a_transaction_without_the_funding_output_funds_nothing",
        "there is no such output",
    ),
    test(
        "index.reorg_kept",
        "ldk_node_ext",
        "chain::index::tests::a_reorganization_and_a_restart_leave_the_truth",
        "index.confirmation",
    ),
    test(
        "holds.unstored",
        "ldk_node_ext",
        "store::holds::tests::an_order_outlives_the_process_and_meets_whatever_arrives_again",
        "the order is not on disk",
    ),
    scenario(
        "factory.any_depth",
        &["lsp-server"],
        "scenario_depth",
        TOO_SHALLOW,
        "lsp-server called it live at too little depth",
    ),
    scenario(
        "factory.any_depth",
        &["client"],
        "scenario_depth",
        TOO_SHALLOW,
        "client-0 called it live at too little depth",
    ),
    scenario(
        "factory.any_depth",
        &["lsp-server", "client"],
        "scenario_depth",
        TOO_SHALLOW,
        "ready at too little depth",
    ),
    scenario(
        "ready.not_held",
        &["lsp-server", "client"],
        "scenario_depth",
        TOO_SHALLOW,
        "ready at too little depth",
    ),
    scenario(
        "client.channel.any",
        &["client"],
        "scenario_depth",
        "a_client_refuses_channels_that_are_in_no_plan",
        "a channel of no plan was accepted",
    ),
    scenario(
        "lsp.funding.unstored",
        &["lsp-server"],
        "scenario_crash",
        "the_lsp_dies_with_the_funding_transaction_stored",
        "the factory failed",
    ),
    scenario(
        "node.monitor.first_write",
        &["lsp-server", "client"],
        "scenario_crash",
        "a_channel_is_on_disk_before_its_factory_is_made",
        "channel to be usable on both sides",
    ),
    scenario(
        "client.path.unstored",
        &["client"],
        "scenario_funding",
        "a_client_that_dies_keeps_the_path_that_it_has_stored",
        "the path is lost",
    ),
    scenario(
        "lsp.funding.any_txid",
        &["lsp-server"],
        "scenario_funding",
        "a_wallet_that_changes_the_txid_funds_nothing",
        "a transaction with another txid was shown",
    ),
    scenario(
        "htlc.expiry",
        &["lsp-server"],
        "scenario_htlc_rules",
        "one_block_decides",
        "forwarded although it expires too soon",
    ),
    scenario(
        "htlc.expiry",
        &["client"],
        "scenario_htlc_rules",
        "one_block_decides",
        "accepted although it expires too soon",
    ),
    scenario(
        "htlc.delta",
        &["lsp-server"],
        "scenario_htlc_rules",
        "one_block_decides",
        "forwarded with too few blocks",
    ),
    scenario("htlc.no_alarm", &["client"], "scenario_htlc_client_exit", "warned", "the exit to begin"),
    scenario("htlc.no_alarm", &["lsp-server"], "scenario_htlc_lsp_exit", "warned", "the exit to begin"),
    scenario(
        "holds.unstored",
        &["client"],
        "scenario_hold",
        "an_order_outlives_the_process",
        "to call the payment succeeded",
    ),
    scenario(
        "client.given_up.unwatched",
        &["client"],
        "scenario_late_funding",
        "a_factory_given_up_is_left_when_its_funding_confirms",
        "what is due to be published; last seen: no exit",
    ),
    scenario(
        "index.reorg_kept",
        &["client"],
        "scenario_exit_reorg",
        "every_step_is_undone_once",
        "offered one by one",
    ),
    scenario(
        "exit.overtaken_kept",
        &["client"],
        "scenario_overtaken",
        "a_step_that_was_overtaken_gives_its_coin_back",
        "to publish what is due",
    ),
    scenario(
        "exit.no_budget",
        &["client"],
        "scenario_overtaken",
        "a_budget_given_beside_a_guard_is_kept",
        "published beyond the budget",
    ),
    scenario(
        "lsp.settled_leaf.left_open",
        &["lsp-server"],
        "scenario_overtaken",
        "a_channel_on_a_published_leaf_is_closed_in_the_end",
        "the channel on a published leaf to be closed",
    ),
    scenario(
        "guard.absent",
        &["client"],
        "scenario_distribution",
        "what_the_lsp_publishes_before_t_does_not_help_it",
        "the client to guard its leaf",
    ),
    scenario(
        "client.no_expiry",
        &["client"],
        "scenario_distribution",
        "clients_are_paid_after_t_when_nothing_was_published",
        "client-0 to publish what is due",
    ),
    scenario(
        "lsp.no_settlement",
        &["lsp-server"],
        "scenario_settle",
        "the_lsp_settles_each_leaf_in_time",
        "lsp-server to publish what is due",
    ),
    scenario(
        "guard.no_distribution",
        &[],
        "scenario_watcher",
        "a_watcher_without_keys_pays_everybody",
        "not begun at the expiry height",
    ),
    scenario(
        "index.reorg_kept",
        &[],
        "scenario_watcher",
        "a_watcher_without_keys_pays_everybody",
        "not out again after a reorganisation",
    ),
    scenario(
        "watch.signatures",
        &[],
        "scenario_watcher",
        "a_watcher_without_keys_pays_everybody",
        "it took ",
    ),
    scenario(
        "watch.distributions",
        &[],
        "scenario_watcher",
        "a_watcher_without_keys_pays_everybody",
        "it took ",
    ),
    crash("publish.child_unstored", &["client"], "node.child.submitted", "does not know the child"),
    scenario(
        "holds.late_given_up",
        &["client"],
        "scenario_hold",
        "an_order_is_carried_out_late_on_the_chain",
        "to call the payment succeeded",
    ),
    scenario(
        "node.depth.ignored",
        &["lsp-server"],
        "scenario_reorg_funding",
        "each_side_refuses_what_the_other_lets_pass",
        "lsp-server to refuse",
    ),
    scenario(
        "node.depth.ignored",
        &["client"],
        "scenario_reorg_funding",
        "each_side_refuses_what_the_other_lets_pass",
        "left: \"succeeded\"",
    ),
    scenario(
        "lsp.close.stores_all",
        &["lsp-server"],
        "scenario_close",
        "a_factory_is_closed_by_one_transaction",
        "all of the close is stored for each balance",
    ),
    scenario(
        "net.strangers.stay",
        &["lsp-server"],
        "scenario_connections",
        "nobody_keeps_the_clients_out",
        "the LSP to hear of the new client",
    ),
];
