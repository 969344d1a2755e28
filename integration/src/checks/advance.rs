//! The rows of [`table`](super::table) for what guards an advance.

use super::table::test;
use super::Check;

const BAD_PROPOSALS: &str = "altered::proposals_that_break_one_rule";
const HONEST_ADVANCE: &str = "honest::a_client_buys_from_the_stock_and_gives_back";
const OTHER_OUTPUTS: &str = "the two sides have different outputs for the channel";

/// The checks of advances.
pub const ADVANCE: &[Check] = &[
    test("client.advance.base", "advance", BAD_PROPOSALS, "from another position"),
    test(
        "client.advance.burnt",
        "advance",
        "aborts::a_position_is_used_once",
        "a position that may be signed already was agreed to",
    ),
    test(
        "client.advance.untried",
        "advance",
        "attacks::inner_transactions_below_an_output_that_exists",
        OTHER_OUTPUTS,
    ),
    test("client.advance.unmarked", "advance", HONEST_ADVANCE, "left before the client's mark was on disk"),
    test("client.advance.many", "advance", "pending::a_client_keeps_so_many_tries", "(1, AdvanceMany, true)"),
    test(
        "client.advance.last",
        "advance",
        "pending::no_capacity_changes_at_the_last_position",
        "(1, AdvanceLast, false)",
    ),
    test(
        "client.advance.policy_once",
        "advance",
        "pending::what_a_client_wants_is_looked_at_again_before_it_signs",
        "(1, NotWanted, false)",
    ),
    test("client.advance.keys", "advance", BAD_PROPOSALS, OTHER_OUTPUTS),
    test("client.advance.sum", "advance", BAD_PROPOSALS, "a sat too much"),
    test(
        "client.advance.shared",
        "advance",
        "altered::a_policy_and_a_shared_leaf_are_kept",
        "(1, AdvanceShared, false)",
    ),
    test(
        "client.advance.capacity",
        "advance",
        "altered::a_policy_and_a_shared_leaf_are_kept",
        "(1, Capacity, false)",
    ),
    test("client.advance.script", "advance", "altered::trees_that_break_one_rule", OTHER_OUTPUTS),
    test(
        "client.advance.uncovered",
        "advance",
        "blamed::silence_is_named_and_companions_are_waited_for",
        "a partial signature left before the companions were on disk",
    ),
    test(
        "client.advance.nonces_twice",
        "advance",
        "altered::aggregate_nonces_are_used_once",
        "(1, NonceReuse, false)",
    ),
    test(
        "client.advance.inner_unchecked",
        "advance",
        "altered::nonces_and_inner_signatures",
        "outer partial signatures left without inner signatures",
    ),
    test(
        "client.advance.inner_unstored",
        "advance",
        HONEST_ADVANCE,
        "outer partial signatures left before the inner transactions were on disk",
    ),
    test(
        "client.advance.signed_unchecked",
        "advance",
        "altered::a_wrong_outer_signature_leaves_the_try_pending",
        "a client stored a state that is not signed",
    ),
    test(
        "client.advance.persisted_early",
        "advance",
        HONEST_ADVANCE,
        "said to be stored before it was on disk",
    ),
    test(
        "lsp.advance.uncovered",
        "advance",
        "blamed::silence_is_named_and_companions_are_waited_for",
        "the provider goes on before its companions were on disk",
    ),
    test("lsp.advance.unburnt", "advance", HONEST_ADVANCE, "before the mark was on disk"),
    test("lsp.advance.signed_early", "advance", HONEST_ADVANCE, "sent before the advance was on disk"),
];
