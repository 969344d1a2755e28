//! The rows of [`table`](super::table) for what lets a channel have several real outpoints.

use super::table::test;
use super::Check;

const RANDOM: &str = "ldk::virt::tests::random::every_own_commitment_is_valid_on_every_outpoint_that_counts";
const WRONG_COMPANION: &str = "ldk::virt::tests::a_wrong_companion_is_refused_and_nothing_is_revoked";
const OWN_ON_REAL: &str =
    "ldk::virt::on_chain::claims::our_own_commitment_leaves_on_the_outpoint_that_is_confirmed";
const REVOKED_ON_REAL: &str =
    "ldk::virt::on_chain::claims::a_revoked_commitment_is_punished_on_every_outpoint";
const REVOKED_ON_RETIRED: &str =
    "ldk::virt::on_chain::retired::a_revoked_commitment_on_a_retired_outpoint_is_punished";

const FORETOLD: &str = "ldk::virt::tests::change::what_cannot_be_foretold_is_refused";
const CHANGES: &str =
    "ldk::virt::tests::change::each_side_and_both_change_the_capacity_with_payments_under_way";

/// The checks of companions and of the translation.
pub const VIRT: &[Check] = &[
    test("change.bind.uncovered", "ldk_node_ext", FORETOLD, "bound before the peer has its own"),
    test("change.sign.unbound", "ldk_node_ext", FORETOLD, "not bound"),
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
    test(
        "predict.unchecked",
        "ldk_node_ext",
        "ldk::virt::tests::change::what_was_foretold_wrongly_is_refused_and_the_channel_goes_on",
        "other commitments than LDK's were foretold",
    ),
    test(
        "splice.abort.passed",
        "ldk_node_ext",
        "ldk::virt::tests::change::what_is_bound_is_not_given_up",
        "tx_abort was heard",
    ),
    test(
        "splice.any",
        "ldk_node_ext",
        "ldk::virt::tests::change::a_splice_that_was_not_agreed_is_not_heard",
        "the splice was accepted",
    ),
    test("splice.lock.not_held", "ldk_node_ext", CHANGES, "locked before both have the new state"),
    test(
        "splice.stfu.early",
        "ldk_node_ext",
        "ldk::virt::tests::change::what_both_add_is_in_one_splice",
        "both add something",
    ),
    test(
        "virt.ahead.none",
        "ldk_node_ext",
        "ldk::virt::on_chain::window::our_own_commitment_leaves_by_the_new_outpoint",
        "no monitor of V'",
    ),
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
    test(
        "virt.unrevoked.stays",
        "ldk_node_ext",
        "ldk::virt::on_chain::retired::a_commitment_that_is_not_revoked_leaves_a_retired_outpoint",
        "updated false",
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
        "virt.superseded.dropped",
        "ldk_node_ext",
        "ldk::virt::on_chain::window::a_revoked_commitment_on_an_overtaken_outpoint_is_punished",
        "nobody watches what was overtaken",
    ),
    test(
        "virt.stuck.pays",
        "ldk_node_ext",
        "ldk::depth::tests::an_older_state_that_has_won_stops_payments",
        "payments go on over a channel that is stuck",
    ),
    test(
        "virt.splice.sent",
        "ldk_node_ext",
        "ldk::broadcaster::tests::a_held_commitment_and_a_closing_transaction_stay_here",
        "a splice transaction has left",
    ),
];
