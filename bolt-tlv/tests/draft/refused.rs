//! Payloads at the limits, and what has to be refused. Long ones are given as parts: hex, and how often it comes.

/// A payload as parts, with what a decoder says of it.
pub struct Case {
    pub name: &'static str,
    pub parts: Vec<(String, usize)>,
    /// Part of the error's text; none if it is accepted.
    pub error: Option<&'static str>,
}

fn case(name: &'static str, parts: &[(&str, usize)], error: Option<&'static str>) -> Case {
    let parts = parts.iter().map(|(hex, times)| (hex.replace(' ', ""), *times)).collect();
    Case { name, parts, error }
}

fn short(name: &'static str, hex: &str, error: &'static str) -> Case {
    case(name, &[(hex, 1)], Some(error))
}

/// The generator.
const G: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
const SIGNATURE: &str = "6666666666666666666666666666666666666666666666666666666666666666\
                         6666666666666666666666666666666666666666666666666666666666666666";

/// The records 0 and 2 that most messages begin with.
fn ids() -> String {
    format!("0020{} 02020102", "bb".repeat(32))
}

/// The limits that are reached, and those that are passed.
pub fn limits() -> Vec<Case> {
    let message = |number: &str, record: &str| format!("{number} {} {record}", ids());
    let list = |name, number: &str, head: &str, item: &str, times, error| {
        case(name, &[(&message(number, head), 1), (item, times)], error)
    };
    let propose = "04020001 06080000000000000000 08080000000000000001";
    let after = "0c00 0e080000000000000000 10020001";
    let keys = |name, length: &str, times, error| {
        let head = message("001e", &format!("{propose} 0afd{length}"));
        case(name, &[(&head, 1), (G, times), (after, 1)], error)
    };
    let shares = |name, length: &str, times, error| {
        let head = message("001e", &format!("{propose} 0a00 0cfd{length}"));
        case(name, &[(&head, 1), ("00000000000186a0", times), ("0e080000000000000000 10020001", 1)], error)
    };
    let marked = format!(
        "0034 0020{} 0224{}00000001 04080000000000000000 0640{SIGNATURE}",
        "cc".repeat(32),
        "44".repeat(32)
    );
    let companion = format!("{}00000000 {SIGNATURE}", "44".repeat(32));
    let companions = |name, length: &str, times, error| {
        case(name, &[(&format!("{marked} 08fd{length}"), 1), (&format!("{companion} 00"), times)], error)
    };
    let htlcs = |name, length: &str, count: &str, times, error| {
        let head = format!("{marked} 08fd{length} {companion} fd{count}");
        case(name, &[(&head, 1), (SIGNATURE, times)], error)
    };
    vec![
        case("payload of 65491 bytes, unknown odd number", &[("002f", 1), ("00", 65_489)], None),
        case(
            "payload of 65492 bytes",
            &[("002f", 1), ("00", 65_490)],
            Some("65490 bytes, at most 65489 are allowed"),
        ),
        list("128 nonces", "0008", "04fd2100", "02", 66 * 128, None),
        list(
            "129 nonces",
            "0008",
            "04fd2142",
            "02",
            66 * 129,
            Some("nonces: 129 items, at most 128 are allowed"),
        ),
        list("128 partial signatures", "0025", "04fd1000", "04", 32 * 128, None),
        list(
            "129 partial signatures",
            "0025",
            "04fd1020",
            "04",
            32 * 129,
            Some("partials: 129 items, at most 128 are allowed"),
        ),
        list(
            "129 signatures",
            "0026",
            "04fd2040",
            "06",
            64 * 129,
            Some("signatures: 129 items, at most 128 are allowed"),
        ),
        keys("1001 keys", "8109", 1001, None),
        keys("1002 keys", "812a", 1002, Some("keys: 1002 items, at most 1001 are allowed")),
        shares("232 capacities", "0740", 232, None),
        shares("233 capacities", "0748", 233, Some("capacities_sat: 233 items, at most 232 are allowed")),
        list("text of 256 bytes", "0020", "04020001 06fd0100", "78", 256, None),
        list(
            "text of 257 bytes",
            "0020",
            "04020001 06fd0101",
            "78",
            257,
            Some("text: 257 bytes, at most 256 are allowed"),
        ),
        case(
            "17 levels",
            &[(&message("0021", "0412 11"), 1), ("00", 17), ("060100", 1)],
            Some("levels: 17 items, at most 16 are allowed"),
        ),
        case(
            "script of 10001 bytes",
            &[(&message("0021", "040100 06fd2715 01 fd2711"), 1), ("51", 10_001)],
            Some("channel_scripts: 10001 bytes, at most 10000 are allowed"),
        ),
        companions("256 companions", "6500", 256, None),
        companions("257 companions", "6565", 257, Some("companions: 257 items, at most 256 are allowed")),
        htlcs("966 HTLC signatures", "f1e7", "03c6", 966, None),
        htlcs(
            "967 HTLC signatures",
            "f227",
            "03c7",
            967,
            Some("companions: 967 items, at most 966 are allowed"),
        ),
    ]
}

/// Short payloads that are not of the form.
pub fn malformed() -> Vec<Case> {
    let message = |number: &str, record: &str| format!("{number} {} {record}", ids());
    let id = "bb".repeat(32);
    let v = format!("{}00000001", "44".repeat(32));
    vec![
        short("no number", "00", "needs 2 bytes, 1 are left"),
        short("unknown even number", "002a", "payload message 42 is even and unknown"),
        case("unknown odd number: ignored, whatever follows", &[("002ffd", 1)], None),
        case("unknown odd record: skipped", &[(&message("0006", "090100"), 1)], None),
        short("unknown even record", &message("0006", "0800"), "tlv type 8 is even and unknown"),
        short("instance missing", "0006 02020102", "instance_id: required record (tlv type 0) is missing"),
        short("attempt missing", &format!("0006 0020{id}"), "attempt: required record (tlv type 2) is missing"),
        short("records out of order", &format!("0006 02020102 0020{id}"), "tlv type 0 follows type 2"),
        short("record twice", &format!("0006 0020{id} 02020102 02020102"), "tlv type 2 follows type 2"),
        short("length not minimal", &format!("0006 00fd0020{id} 02020102"), "bigsize 32 is not minimally encoded"),
        short("instance of 31 bytes", &format!("0006 001f{} 02020102", "bb".repeat(31)), "must be 32 bytes, is 31"),
        short("attempt of 1 byte", &format!("0006 0020{id} 020101"), "attempt: must be 2 bytes, is 1"),
        short("record cut short", &format!("0006 0020{}", "bb".repeat(31)), "needs 32 bytes, 31 are left"),
        short("nonces no multiple of 66", &message("0008", &format!("0441{}", "02".repeat(65))), "65 bytes are not a multiple of 66"),
        short(
            "key is no point",
            &message("0003", &format!("042105{} 06160014{}", &G[2..], "11".repeat(20))),
            "factory_key: not a point on the curve",
        ),
        short(
            "payout script is no witness program",
            &message("0003", &format!("0421{G} 061976a914{}88ac", "11".repeat(20))),
            "payout_script: not a witness program",
        ),
        short("text is no UTF-8", &message("0020", "04020001 0601ff"), "text: not valid utf-8"),
        short(
            "layers of one level for two",
            &message(
                "0005",
                &format!(
                    "0404fabfb5da 0604000003e8 080400001770 0a2e 00020001 02020002 040201 00 0604000010e0 0804000001b0
                     0a0400000090 0c020006 0e020006 10020090 12020006 0c42{G}{G} 0e0400000001 100100 12080000000000000000
                     14160014{}",
                    "11".repeat(20)
                )
                .replace(['\n', ' '], ""),
            ),
            "layers: 1 levels for 1 arities, must be one more",
        ),
        short(
            "transaction announces an input that is not there",
            &message("000d", "0405 02000000 01"),
            "transaction: not a transaction in consensus encoding",
        ),
        short("outpoint of 35 bytes", &format!("0032 0020{} 0223{}", "cc".repeat(32), &v[2..]), "funding: needs"),
        short(
            "companion without its count of HTLCs",
            &format!("0034 0020{} 0224{v} 04080000000000000000 0640{SIGNATURE} 0864{v}{SIGNATURE}", "cc".repeat(32)),
            "companions: needs 1 bytes, 0 are left",
        ),
    ]
}
